"""The benchmarks of speed: their sums, the talk with a runner, and that all of it runs at tiny sizes without the others."""

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

from tests.system.processes import CHECKOUT, environment

SPEED = CHECKOUT / "benchmarks" / "speed"

# Read by every Python that has it on its path: as if what a bare machine with a GPU lacks were not installed.
FEW_PACKAGES = """
import sys
from importlib.machinery import PathFinder
class Few(PathFinder):
    @staticmethod
    def find_spec(name, path=None, target=None):
        lacks = {"bentoml", "cyclopts", "holidays", "mlflow", "onnxruntime", "orjson", "pyarrow", "starlette"}
        return None if name.partition(".")[0] in lacks else PathFinder.find_spec(name, path, target)
sys.meta_path = [Few if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a module of the benchmarks as they import each other."""
    monkeypatch.syspath_prepend(SPEED)
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return __import__(name)

    yield load
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SPEED)):
            del sys.modules[name]


def record(group: str, **seconds: list[float]) -> dict[str, Any]:
    names = {name.replace("__", "/").replace("_", " "): taken for name, taken in seconds.items()}
    first = {"ours/carried": "ours/backtest, state carried", "ours/forecast each": "ours/Predictor.forecast_each"}
    names = {first.get(name, name): taken for name, taken in names.items()}
    facts = {"parameters": 7, "computes": "something"}
    return {
        "case": {"group": group, "name": group},
        "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "system": "Linux", "python": "3.11"},
        "versions": {"ours": {"torch": "2.13.0"}},
        "entrants": {
            name: {"seconds": taken, "cpu": taken, "facts": {**facts, "smaller": "small" in name}}
            for name, taken in names.items()
        },
    }


def test_a_ratio_is_the_median_of_the_ratios_within_a_turn(speed: Any) -> None:
    found = record("backtest", ours__carried=[1.0, 2.0, 4.0], darts__Darts_RNNModel=[30.0, 50.0, 80.0])
    assert speed("report").ratios(found, "darts/Darts RNNModel") == [30.0, 25.0, 20.0]
    assert "20 times faster than Darts RNNModel: 25 times, met." in speed("report").report({"backtest": found})


def test_the_fastest_peer_is_told_with_and_without_those_of_a_smaller_network(speed: Any) -> None:
    found = record(
        "rollout",
        ours__forecast_each=[1.0],
        bare__loop=[0.5],
        darts__Darts=[30.0],
        neuralforecast__small=[20.0],
    )
    told = speed("report").report({"rollout_64x1_1x24": found})
    assert "25 times faster than the fastest peer (small): 20 times, not met." in told
    assert "25 times faster than the fastest peer with a network of this size (Darts): 30 times, met." in told


def test_one_who_failed_is_told_and_spoils_nothing(speed: Any) -> None:
    found = record("backtest", ours__carried=[1.0], darts__Darts_RNNModel=[])
    found["entrants"]["darts/Darts RNNModel"] = {"seconds": [], "cpu": [], "failed": "it ended"}
    told = speed("report").report({"backtest": found})
    assert "| Darts RNNModel | failed: it ended |" in told
    assert "times faster" not in told


def test_every_aim_is_of_a_case_and_every_case_has_its_data(speed: Any) -> None:
    cases = speed("cases")
    assert set(cases.AIMS) <= set(cases.CASES)
    for case in map(cases.small, cases.CASES.values()):
        assert case.group in cases.ENTRANTS
        assert cases.values(case).shape == (case.series, case.length)
        np.testing.assert_array_equal(cases.values(case), cases.values(case))


def test_what_is_done_once_is_not_in_the_time_of_a_step(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = speed("timing")
    taken = {3: timing.Taken(10.3, 10.3), 13: timing.Taken(11.3, 11.3)}
    monkeypatch.setattr(timing, "taken", lambda act: taken[act()])
    assert timing.per_step(lambda steps: steps, few=3, many=13) == pytest.approx((0.1, 0.1))


def test_without_the_others_the_driver_says_how_to_get_them(tmp_path: Path) -> None:
    done = run("run.py", "--peers", str(tmp_path), "--json", str(tmp_path / "speed.json"))
    assert done.returncode == 1
    assert "peers/install.py" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_our_runner_takes_part_in_every_case_it_is_entered_for(speed: Any, tmp_path: Path) -> None:
    cases, talk = speed("cases"), speed("runner_process")
    one = talk.Runner("ours", Path(sys.executable), threads=1, log=tmp_path / "log")
    try:
        for case in map(cases.small, cases.CASES.values()):
            for entrant in cases.ENTRANTS[case.group]:
                runner, name = entrant.split("/")
                if runner == "ours" and case.group != "process":
                    ready = one.prepare(case, name, timeout=300)
                    assert "facts" in ready or "no members" in ready["not_available"], (tmp_path / "log").read_text()
                    if "facts" in ready:
                        assert np.isfinite(one.ask({"do": "run", "entrant": name}, timeout=300)["seconds"])
    finally:
        one.leave()


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_without_one_and_with_few_packages(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(FEW_PACKAGES)
    done = run("gpu.py", "--smoke", also=tmp_path)
    assert done.returncode == 0, done.stderr
    for section in ("## Training", "## Where the time of a step goes", "## Precision", "## Rollout"):
        assert section in done.stdout
    assert "| float32 | " in done.stdout


@pytest.mark.sweep
@pytest.mark.slow
def test_the_benchmark_of_growth_runs() -> None:
    done = run("growth.py", "--smoke")
    assert done.returncode == 0, done.stderr
    assert (
        sum(line.startswith(("| series", "| context", "| horizon", "| hidden")) for line in done.stdout.splitlines())
        == 9
    )


def run(*arguments: str, also: Path = SPEED) -> subprocess.CompletedProcess[str]:
    told = environment(PYTHONPATH=f"{also}{os.pathsep}{CHECKOUT}")
    return subprocess.run(
        [sys.executable, *arguments], cwd=SPEED, env=told, capture_output=True, text=True, timeout=600
    )
