"""The benchmark of nightly retraining, on two nights of synthetic series."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.frames.panel import to_panel
from tests.system.processes import CHECKOUT

pytestmark = pytest.mark.integration

SERIES_COUNT, DAY_COUNT = 12, 12
SPEC_FIELDS = {
    "context": 48,
    "network": {"hidden": 4, "layers": 1},
    "training": {"steps": 4, "epoch_steps": 2, "batch": 8},
}


@pytest.fixture
def week_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    yield __import__("week")
    for name in ("week", "simulation"):
        del sys.modules[name]


def make_daily_waves() -> Any:
    """Returns a daily wave with noise; no forecast is better than the mean."""
    rng, clock = np.random.default_rng(0), np.arange(DAY_COUNT * 24)
    wave = 20 + 5 * np.cos(2 * np.pi * clock / 24)
    timestamps = pd.date_range("2026-01-05", periods=len(clock), freq="h")
    return to_panel(
        pd.concat(
            pd.DataFrame({"unique_id": f"meter_{index}", "ds": timestamps, "y": wave + rng.normal(size=len(clock))})
            for index in range(SERIES_COUNT)
        )
    )


def test_a_change_scales_all_series_and_shifts_every_second(week_module: Any) -> None:
    panel = make_daily_waves()
    shifted = sys.modules["simulation"].apply_shift(panel, week_module.PlannedShift("odd", 1.5, 3), step=100)
    for index, (before, after) in enumerate(zip(panel.series, shifted.series, strict=True)):
        delay = 3 if index % 2 else 0
        np.testing.assert_array_equal(after.y[:100], before.y[:100])
        np.testing.assert_array_equal(after.y[100:], 1.5 * before.y[100 - delay : len(before.y) - delay])


def test_two_nights_are_simulated_and_reported(week_module: Any, tmp_path: Path, migrated_root: Path) -> None:
    (tmp_path / "root").mkdir()
    shutil.copy(migrated_root / "mlflow.db", tmp_path / "root")
    plan = week_module.SimulationPlan(history=DAY_COUNT - 2, nights=2, change=1, spec_fields=SPEC_FIELDS)
    result = week_module.simulate_nights(
        make_daily_waves(), week_module.PlannedShift("level alone", 1.4, 0), plan, tmp_path
    )
    shapes = {name: errors.shape for name, errors in result.errors.items()}
    assert shapes == dict.fromkeys(("frozen", "nightly", "if_needed", week_module.NAIVE), (2, SERIES_COUNT))
    trained = {
        name: [night_result.verdict is not None for night_result in results] for name, results in result.nights.items()
    }
    assert (trained["frozen"], trained["nightly"]) == ([True, False], [True, True])
    assert all(results[0].promoted for results in result.nights.values())
    np.testing.assert_array_equal(result.errors["frozen"][0], result.errors["nightly"][0])
    assert result.errors["frozen"][0].mean() < result.errors[week_module.NAIVE][0].mean()
    report = week_module.format_report([result], series=SERIES_COUNT, threads=1)
    assert "| 1 | " in report
    assert "| **2** | " in report
    week_module.plot_weeks([result]).savefig(tmp_path / "week.png")
    assert (tmp_path / "week.png").stat().st_size > 10_000
