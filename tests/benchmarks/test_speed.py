"""The speed benchmarks: their computations, the messages to a runner, and runs at tiny sizes without the peers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.system.processes import CHECKOUT, make_environment

pytestmark = pytest.mark.integration

SPEED_FOLDER = CHECKOUT / "benchmarks" / "speed"

# Written as sitecustomize.py, which every Python on whose path it is reads: hides packages that a bare GPU machine lacks.
FEW_PACKAGES_PROGRAM = """
import sys
from importlib.machinery import PathFinder
class FewPackagesFinder(PathFinder):
    @staticmethod
    def find_spec(name, path=None, target=None):
        missing = {"bentoml", "cyclopts", "holidays", "mlflow", "onnxruntime", "orjson", "pyarrow", "starlette"}
        return None if name.partition(".")[0] in missing else PathFinder.find_spec(name, path, target)
sys.meta_path = [FewPackagesFinder if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def import_speed_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the benchmarks as they import each other."""
    monkeypatch.syspath_prepend(SPEED_FOLDER)
    loaded_before = set(sys.modules)

    def import_module(name: str) -> ModuleType:
        return __import__(name)

    yield import_module
    for name in set(sys.modules) - loaded_before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SPEED_FOLDER)):
            del sys.modules[name]


def make_record(group: str, **seconds: list[float]) -> dict[str, Any]:
    names = {name.replace("__", "/").replace("_", " "): timings for name, timings in seconds.items()}
    full_names = {
        "ours/carried": "ours/backtest, state carried",
        "ours/forecast batch": "ours/Predictor.forecast_batch",
    }
    names = {full_names.get(name, name): timings for name, timings in names.items()}
    facts = {"parameters": 7, "computes": "something"}
    return {
        "case": {"group": group, "name": group},
        "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "system": "Linux", "python": "3.11"},
        "versions": {"ours": {"torch": "2.13.0"}},
        "entrants": {
            name: {"seconds": timings, "cpu": timings, "facts": {**facts, "smaller": "small" in name}}
            for name, timings in names.items()
        },
    }


def test_a_ratio_is_the_median_of_ratios_within_rounds(import_speed_module: Any) -> None:
    record = make_record("backtest", ours__carried=[1.0, 2.0, 4.0], darts__Darts_RNNModel=[30.0, 50.0, 80.0])
    assert import_speed_module("report").compute_ratios(record, "darts/Darts RNNModel") == [30.0, 25.0, 20.0]
    assert "20 times faster than Darts RNNModel: 25 times, met." in import_speed_module("report").format_report(
        {"backtest": record}
    )


def test_the_fastest_peer_is_reported_with_and_without_smaller_networks(import_speed_module: Any) -> None:
    record = make_record(
        "rollout",
        ours__forecast_batch=[1.0],
        bare__loop=[0.5],
        darts__Darts=[30.0],
        neuralforecast__small=[20.0],
    )
    report = import_speed_module("report").format_report({"rollout_64x1_1x24": record})
    assert "25 times faster than the fastest peer (small): 20 times, not met." in report
    assert "25 times faster than the fastest peer with a network of this size (Darts): 30 times, met." in report


def test_a_failed_entrant_is_reported_and_affects_no_other(import_speed_module: Any) -> None:
    record = make_record("backtest", ours__carried=[1.0], darts__Darts_RNNModel=[])
    record["entrants"]["darts/Darts RNNModel"] = {"seconds": [], "cpu": [], "failed": "it ended"}
    report = import_speed_module("report").format_report({"backtest": record})
    assert "| Darts RNNModel | failed: it ended |" in report
    assert "times faster" not in report


def test_every_target_belongs_to_a_case_and_every_case_has_data(import_speed_module: Any) -> None:
    cases = import_speed_module("cases")
    assert set(cases.SPEED_TARGETS) <= set(cases.CASES)
    for case in map(cases.shrink_case, cases.CASES.values()):
        assert case.group in cases.ENTRANTS
        assert cases.make_values(case).shape == (case.series, case.length)
        np.testing.assert_array_equal(cases.make_values(case), cases.make_values(case))


def test_fixed_costs_are_excluded_from_the_time_per_step(
    import_speed_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = import_speed_module("timing")
    timings = {3: timing.Timing(10.3, 10.3), 13: timing.Timing(11.3, 11.3)}
    monkeypatch.setattr(timing, "time_once", lambda action: timings[action()])
    assert timing.time_per_step(lambda steps: steps, few=3, many=13) == pytest.approx((0.1, 0.1))


def test_without_the_peers_the_driver_explains_their_installation(tmp_path: Path) -> None:
    completed = run_script("run.py", "--peers", str(tmp_path), "--json", str(tmp_path / "speed.json"))
    assert completed.returncode == 1
    assert "peers/install.py" in completed.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_our_runner_completes_every_case_it_is_entered_for(import_speed_module: Any, tmp_path: Path) -> None:
    cases, runner_module = import_speed_module("cases"), import_speed_module("runner_process")
    runner_process = runner_module.RunnerProcess("ours", Path(sys.executable), threads=1, log=tmp_path / "log")
    try:
        for case in map(cases.shrink_case, cases.CASES.values()):
            for entrant in cases.ENTRANTS[case.group]:
                runner_name, name = entrant.split("/")
                if runner_name == "ours" and case.group != "process":
                    reply = runner_process.prepare(case, name, timeout=300)
                    assert "facts" in reply or "no members" in reply["not_available"], (tmp_path / "log").read_text()
                    if "facts" in reply:
                        assert np.isfinite(
                            runner_process.request({"do": "run", "entrant": name}, timeout=300)["seconds"]
                        )
    finally:
        runner_process.close()


@pytest.mark.nightly
def test_the_gpu_benchmark_runs_without_a_gpu_and_with_few_packages(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FEW_PACKAGES_PROGRAM)
    completed = run_script("gpu.py", "--smoke", python_path=tmp_path)
    assert completed.returncode == 0, completed.stderr
    for section in ("## Training", "## Where the time of a step goes", "## Precision", "## Rollout"):
        assert section in completed.stdout
    assert "| float32 | " in completed.stdout


@pytest.mark.nightly
def test_the_growth_benchmark_runs() -> None:
    completed = run_script("growth.py", "--smoke")
    assert completed.returncode == 0, completed.stderr
    assert (
        sum(
            line.startswith(("| series", "| context", "| horizon", "| hidden"))
            for line in completed.stdout.splitlines()
        )
        == 9
    )


def run_script(*arguments: str, python_path: Path = SPEED_FOLDER) -> subprocess.CompletedProcess[str]:
    environment = make_environment(PYTHONPATH=f"{python_path}{os.pathsep}{CHECKOUT}")
    return subprocess.run(
        [sys.executable, *arguments], cwd=SPEED_FOLDER, env=environment, capture_output=True, text=True, timeout=600
    )
