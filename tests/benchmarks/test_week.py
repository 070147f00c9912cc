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

SERIES, DAYS = 12, 12
FIELDS = {"context": 48, "network": {"hidden": 4, "layers": 1}, "training": {"steps": 4, "epoch_steps": 2, "batch": 8}}


@pytest.fixture
def week(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(CHECKOUT / "benchmarks")
    yield __import__("week")
    for name in ("week", "nights"):
        del sys.modules[name]


def days() -> Any:
    """Noise about a daily wave, of which nothing is better than its mean."""
    draw, clock = np.random.default_rng(0), np.arange(DAYS * 24)
    wave = 20 + 5 * np.cos(2 * np.pi * clock / 24)
    stamps = pd.date_range("2026-01-05", periods=len(clock), freq="h")
    return to_panel(
        pd.concat(
            pd.DataFrame({"unique_id": f"meter_{place}", "ds": stamps, "y": wave + draw.normal(size=len(clock))})
            for place in range(SERIES)
        )
    )


def test_a_change_multiplies_all_and_moves_every_second(week: Any) -> None:
    panel = days()
    found = sys.modules["nights"].changed(panel, week.Change("odd", 1.5, 3), at=100)
    for place, (before, after) in enumerate(zip(panel.series, found.series, strict=True)):
        later = 3 if place % 2 else 0
        np.testing.assert_array_equal(after.y[:100], before.y[:100])
        np.testing.assert_array_equal(after.y[100:], 1.5 * before.y[100 - later : len(before.y) - later])


def test_two_nights_are_lived_and_told(week: Any, tmp_path: Path, migrated: Path) -> None:
    (tmp_path / "root").mkdir()
    shutil.copy(migrated / "mlflow.db", tmp_path / "root")
    plan = week.Plan(history=DAYS - 2, nights=2, change=1, fields=FIELDS)
    lived = week.live(days(), week.Change("level alone", 1.4, 0), plan, tmp_path)
    shapes = {name: found.shape for name, found in lived.errors.items()}
    assert shapes == dict.fromkeys(("frozen", "nightly", "if_needed", week.NAIVE), (2, SERIES))
    trained = {name: [each.verdict is not None for each in found] for name, found in lived.nights.items()}
    assert (trained["frozen"], trained["nightly"]) == ([True, False], [True, True])
    assert all(found[0].promoted for found in lived.nights.values())
    np.testing.assert_array_equal(lived.errors["frozen"][0], lived.errors["nightly"][0])
    assert lived.errors["frozen"][0].mean() < lived.errors[week.NAIVE][0].mean()
    told = week.report([lived], series=SERIES, threads=1)
    assert "| 1 | " in told
    assert "| **2** | " in told
    week.picture([lived]).savefig(tmp_path / "week.png")
    assert (tmp_path / "week.png").stat().st_size > 10_000
