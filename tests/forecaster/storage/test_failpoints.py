"""The list of fail points: each stands in the code, and each step has a sweep that kills real processes at all of its points."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forecaster.storage.failpoints import POINTS

CHECKOUT = Path(__file__).parents[3]
# Every sweep asserts that its process was killed: a point that is never reached fails it.
SWEEPS = {
    "checkpoint": "system/test_failpoints.py",
    "export": "system/test_failpoints.py",
    "register": "system/test_failpoints.py",
    "judge": "system/test_failpoints.py",
    "promote": "system/test_failpoints.py",
    "rollback": "system/test_failpoints.py",
    "retrain": "system/test_killed_retraining.py",
    "reload": "serving/deployment/test_readiness.py",
    "local": "system/test_fault_injection.py",
    "lease": "system/test_fault_injection.py",
    "schedule": "system/test_fault_injection.py",
}


def test_every_step_has_a_sweep() -> None:
    assert {name.partition(".")[0] for name in POINTS} == set(SWEEPS)
    assert len(POINTS) == len(set(POINTS))


@pytest.mark.parametrize(("step", "file"), SWEEPS.items())
def test_the_sweep_of_a_step_asks_for_all_of_its_points(step: str, file: str) -> None:
    asked = re.findall(r"points_of\(([^)]*)\)", (CHECKOUT / "tests" / file).read_text())
    assert f'"{step}"' in ", ".join(asked)


def test_every_point_stands_in_the_code_and_is_listed() -> None:
    sources = [path for folder in ("forecaster", "pipelines", "serving") for path in (CHECKOUT / folder).rglob("*.py")]
    found = {name for path in sources for name in re.findall(r"\bpoint\(f?\"([^\"]+)\"\)", path.read_text())}
    steps = {name.removeprefix("{step}") for name in found if name.startswith("{step}")}
    both = {f"{step}{rest}" for step in ("promote", "rollback") for rest in steps}
    assert {name for name in found if not name.startswith("{step}")} | both == set(POINTS)
