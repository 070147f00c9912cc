"""Rollback drill: a service with two workers returns to the previous model, also if the registry cannot be written or read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.processes import CHECKOUT, make_environment

pytestmark = pytest.mark.integration


@pytest.mark.nightly
def test_every_worker_rolls_back_with_and_without_a_registry(tmp_path: Path) -> None:
    out = tmp_path / "rollback.md"
    completed = subprocess.run(
        [sys.executable, str(CHECKOUT / "benchmarks" / "rollback.py"), "--out", str(out)],
        env=make_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines()[6:]]
    assert len(rows) == 11
    for label, measured, target in rows:
        if target and not target.endswith(" s"):  # seconds depend on the load of the machine
            assert measured == target, label
    local_seconds = next(measured for label, measured, _ in rows if "read-only, `rollback --local`" in label)
    assert re.fullmatch(r"[\d.]+ s \([\d.]+ s\)", local_seconds)
