"""The list of fail points: each stands in the code, and each step has a sweep that kills real processes at all of its points."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forecaster.storage.failpoints import FAIL_POINTS

CHECKOUT = Path(__file__).parents[3]
# Every sweep asserts that its process was killed: a point that is never reached fails it.
SWEEP_FILES = {
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


def test_every_fail_point_group_has_a_sweep() -> None:
    assert {name.partition(".")[0] for name in FAIL_POINTS} == set(SWEEP_FILES)
    assert len(FAIL_POINTS) == len(set(FAIL_POINTS))


@pytest.mark.parametrize(("step", "file"), SWEEP_FILES.items())
def test_the_sweep_of_a_group_covers_all_its_fail_points(step: str, file: str) -> None:
    asked = re.findall(r"fail_points_of\(([^)]*)\)", (CHECKOUT / "tests" / file).read_text())
    assert f'"{step}"' in ", ".join(asked)


def test_every_fail_point_is_in_the_code_and_in_the_list() -> None:
    sources = [path for folder in ("forecaster", "pipelines", "serving") for path in (CHECKOUT / folder).rglob("*.py")]
    found = {name for path in sources for name in re.findall(r"\bfail_point\(f?\"([^\"]+)\"\)", path.read_text())}
    steps = {name.removeprefix("{step}") for name in found if name.startswith("{step}")}
    both = {f"{step}{rest}" for step in ("promote", "rollback") for rest in steps}
    assert {name for name in found if not name.startswith("{step}")} | both == set(FAIL_POINTS)
