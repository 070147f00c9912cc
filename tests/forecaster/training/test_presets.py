"""Presets: a specification for every kind of data that takes it, and the best of its variants by the last known windows."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import BadSpec
from forecaster.metrics import mae, seasonal_error
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel, Series
from forecaster.spec import Spec
from forecaster.training.fit import fit
from forecaster.training.presets import Preset, candidates, judging
from forecaster.training.selection import choose
from tests.factories import make_spec, panel_of, wave

FREQUENCIES = {
    "YS": "yearly",
    "QS-JAN": "quarterly",
    "MS": "monthly",
    "7D": "weekly",
    "D": "daily",
    "B": "daily",
    "h": "hourly",
    "15min": "hourly",
    "min": "hourly",
}


def panel(freq: str, *lengths: int) -> Panel:
    start = pd.Timestamp("2020-01-01") if freq != "B" else pd.Timestamp("2020-01-02")
    return Panel([Series(str(n), start, freq, 50 + wave(length, seed=n)) for n, length in enumerate(lengths)], freq)


@pytest.mark.parametrize("freq", FREQUENCIES)
@pytest.mark.parametrize("lengths", [(7, 6), (40, 30, 20), (300,), (3000, 200, 9)])
@pytest.mark.parametrize("horizon", [1, 3, 18, 60])
def test_every_frequency_length_and_horizon_has_a_specification_that_fits_its_data(
    freq: str, lengths: tuple[int, ...], horizon: int
) -> None:
    for spec in candidates(panel(freq, *lengths), horizon=horizon, name="any"):
        assert (spec.horizon, spec.name) == (horizon, "any")
        assert spec.context % spec.segment == 0
        room = max(2, max(lengths) - 2 * horizon)
        assert spec.context <= max(room, spec.segment)
        assert spec.held_out <= max(horizon, np.median(lengths) / 5)
        assert spec.least <= spec.context


def test_a_preset_is_that_of_the_frequency_unless_another_is_named() -> None:
    monthly = candidates(panel("MS", 120, 110), horizon=18, name="any")
    assert len(monthly) > 1
    assert all(spec.head.loss == "mae" and spec.training.refit for spec in monthly)
    [classic] = candidates(panel("MS", 120, 110), horizon=18, name="any", kind="classic")
    assert (classic.head.loss, classic.decoder, classic.segment) == ("mse", "rollout", 1)
    assert candidates(panel("h", 2000), horizon=100, name="a", kind="yearly") == [
        spec.model_copy(update={"name": "a"}) for spec in candidates(panel("YS", 2000), horizon=100, name="b")
    ]
    for kind in get_args(Preset):
        assert candidates(panel("D", 400), horizon=7, name="any", kind=kind)
    with pytest.raises(BadSpec, match="monthly") as refused:
        candidates(panel("D", 400), horizon=7, name="any", kind="lunar")
    assert "lunar" in str(refused.value)


@pytest.mark.parametrize(
    ("windows", "horizon", "season", "expected"),
    [
        (1, 336, 24, {"valid_windows": 1}),  # no second one to share steps with
        (20, 336, 24, {"valid_windows": 20}),  # enough
        (5, 12, 12, {"valid_windows": 5}),  # no season shorter than the horizon
        (8, 336, 24, {"valid_windows": 99, "valid_stride": 24}),
        (4, 720, 24, {"valid_windows": 91, "valid_stride": 24}),
        (19, 720, 24, {"valid_windows": 109, "valid_stride": 120}),  # 541 days would be too many
        (3, 6, 1, {"valid_windows": 13, "valid_stride": 1}),
    ],
)
def test_where_few_windows_have_room_they_share_steps(
    windows: int, horizon: int, season: int, expected: dict[str, int]
) -> None:
    judges = judging(windows, horizon=horizon, season=season)
    assert judges == expected
    apart, together = (make_spec(horizon=horizon, training=one) for one in ({"valid_windows": windows}, judges))
    assert windows * horizon - season * 10 < together.held_out <= apart.held_out == windows * horizon


def test_an_hourly_panel_with_a_long_horizon_is_judged_by_windows_that_share_steps() -> None:
    for spec in candidates(panel("h", 10_000), horizon=240, name="any"):
        assert (spec.training.valid_windows, spec.training.valid_stride) == (21, 24)
    assert make_spec(training={"valid_windows": 0, "valid_stride": 3}).held_out == 0


def test_of_several_the_best_on_the_validation_windows_is_chosen_and_nothing_later_is_looked_at() -> None:
    known = panel_of(*(wave(90, seed=n) for n in range(3)))
    training = {"steps": 30, "epoch_steps": 10, "batch": 16, "learning_rate": 0.02, "valid_windows": 1}
    good = make_spec(training=training, scaling="standard", base="seasonal_naive", season=24)
    bad = make_spec(training=training | {"learning_rate": 1e-9}, scaling="none", base="linear", season=24)
    told: list[tuple[Spec, float]] = []
    chosen = choose(known, [bad, good], accelerator="cpu", tell=lambda spec, error: told.append((spec, error)))
    assert chosen.spec == good
    assert [spec for spec, _ in told] == [bad, good]
    assert chosen.errors == tuple(error for _, error in told)
    assert chosen.errors[1] < chosen.errors[0]
    judged = fit(known, good, accelerator="cpu").forecaster
    cut = [one.until(len(one) - 5) for one in known.series]
    foretold = [Predictor(judged).forecast(one, 5).mean for one in cut]
    errors = [
        mae(one.y[-5:], mean) / seasonal_error(before.y, season=24)
        for one, before, mean in zip(known.series, cut, foretold, strict=True)
    ]
    assert chosen.errors[1] == pytest.approx(float(np.mean(errors)), rel=1e-4)
    assert choose(known, [bad], accelerator="cpu").spec == bad


def test_a_candidate_that_diverges_is_not_chosen() -> None:
    known = panel_of(*(wave(90, seed=n) for n in range(3)))
    training = {"steps": 20, "epoch_steps": 10, "batch": 16, "valid_windows": 1}
    wild = make_spec(training=training | {"learning_rate": 1e30}, scaling="none")
    calm = make_spec(training=training | {"learning_rate": 1e-3})
    assert choose(known, [wild, calm], accelerator="cpu").spec == calm
