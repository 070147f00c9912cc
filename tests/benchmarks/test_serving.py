"""The benchmark of the service runs from end to end, at a size at which its figures mean nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.processes import CHECKOUT

pytestmark = pytest.mark.integration


def run_benchmark(out: Path, *sections: str) -> str:
    command = [sys.executable, str(CHECKOUT / "benchmarks" / "serving.py"), "--tiny", "--without-mlflow"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BENTOML", "FORECASTER"))}
    completed = subprocess.run(
        [*command, "--only", ",".join(sections), "--out", str(out)],
        env=environment,
        cwd=out.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return out.read_text()


def test_the_benchmark_compares_with_a_raw_route_and_no_model_change_fails_a_request(tmp_path: Path) -> None:
    report = run_benchmark(tmp_path / "serving.md", "one", "flips")
    for connections in (1, 16, 64):
        assert f"| ours, 1 worker | {connections} |" in report
        assert f"| raw uvicorn route | {connections} |" in report
    assert "| failed | 0 | 0 |" in report
    assert "| mixed: from a damaged bundle, or different responses from one model | 0 | 0 |" in report
    assert "| different models respond differently | yes | yes |" in report
