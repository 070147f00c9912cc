"""The list of fail points matches the code, and every group has a sweep that kills real processes at all of its points."""

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
    "schedule": "system/test_fault_injection.py",
    "pretrain": "pipelines/training/test_pretrain.py",
    "batch": "forecaster/batch/test_killed_batch.py",
}


def test_every_fail_point_group_has_a_sweep() -> None:
    assert {name.partition(".")[0] for name in FAIL_POINTS} == set(SWEEP_FILES)
    assert len(FAIL_POINTS) == len(set(FAIL_POINTS))


@pytest.mark.parametrize(("step", "file"), SWEEP_FILES.items())
def test_the_sweep_of_a_group_covers_all_its_fail_points(step: str, file: str) -> None:
    calls = re.findall(r"fail_points_of\(([^)]*)\)", (CHECKOUT / "tests" / file).read_text())
    assert f'"{step}"' in ", ".join(calls)


def test_every_fail_point_is_in_the_code_and_in_the_list() -> None:
    sources = [path for folder in ("forecaster", "pipelines", "serving") for path in (CHECKOUT / folder).rglob("*.py")]
    names = {name for path in sources for name in re.findall(r"\bfail_point\(f?\"([^\"]+)\"\)", path.read_text())}
    suffixes = {name.removeprefix("{step}") for name in names if name.startswith("{step}")}
    expanded = {f"{step}{suffix}" for step in ("promote", "rollback") for suffix in suffixes}
    assert {name for name in names if not name.startswith("{step}")} | expanded == set(FAIL_POINTS)
