"""The benchmark of nightly retraining, on two nights of made-up series."""

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
    """Noise about a daily wave, of which nothing is better than its mean."""
    draw, clock = np.random.default_rng(0), np.arange(DAY_COUNT * 24)
    wave = 20 + 5 * np.cos(2 * np.pi * clock / 24)
    stamps = pd.date_range("2026-01-05", periods=len(clock), freq="h")
    return to_panel(
        pd.concat(
            pd.DataFrame({"unique_id": f"meter_{place}", "ds": stamps, "y": wave + draw.normal(size=len(clock))})
            for place in range(SERIES_COUNT)
        )
    )


def test_a_change_scales_all_series_and_shifts_every_second(week_module: Any) -> None:
    panel = make_daily_waves()
    found = sys.modules["simulation"].apply_shift(panel, week_module.PlannedShift("odd", 1.5, 3), step=100)
    for place, (before, after) in enumerate(zip(panel.series, found.series, strict=True)):
        later = 3 if place % 2 else 0
        np.testing.assert_array_equal(after.y[:100], before.y[:100])
        np.testing.assert_array_equal(after.y[100:], 1.5 * before.y[100 - later : len(before.y) - later])


def test_two_nights_are_simulated_and_reported(week_module: Any, tmp_path: Path, migrated_root: Path) -> None:
    (tmp_path / "root").mkdir()
    shutil.copy(migrated_root / "mlflow.db", tmp_path / "root")
    plan = week_module.SimulationPlan(history=DAY_COUNT - 2, nights=2, change=1, spec_fields=SPEC_FIELDS)
    lived = week_module.simulate_nights(
        make_daily_waves(), week_module.PlannedShift("level alone", 1.4, 0), plan, tmp_path
    )
    shapes = {name: found.shape for name, found in lived.errors.items()}
    assert shapes == dict.fromkeys(("frozen", "nightly", "if_needed", week_module.NAIVE), (2, SERIES_COUNT))
    trained = {name: [each.verdict is not None for each in found] for name, found in lived.nights.items()}
    assert (trained["frozen"], trained["nightly"]) == ([True, False], [True, True])
    assert all(found[0].promoted for found in lived.nights.values())
    np.testing.assert_array_equal(lived.errors["frozen"][0], lived.errors["nightly"][0])
    assert lived.errors["frozen"][0].mean() < lived.errors[week_module.NAIVE][0].mean()
    told = week_module.format_report([lived], series=SERIES_COUNT, threads=1)
    assert "| 1 | " in told
    assert "| **2** | " in told
    week_module.plot_weeks([lived]).savefig(tmp_path / "week.png")
    assert (tmp_path / "week.png").stat().st_size > 10_000
