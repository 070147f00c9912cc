"""A history cut down to what forecasts ask of it: with later values behind it, the forecast is that of the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from forecaster.data.batching import repeat_season
from forecaster.data.encoding import Encoding
from forecaster.engines.engine import RolloutInput
from forecaster.history_summary import HistorySummary, drop_and_summarize, history_scale
from forecaster.intervals.conformal import calibrate
from forecaster.ledger.recording import SeriesNaming, build_records
from forecaster.ledger.records import ModelIdentity
from forecaster.model.regressor import build_network
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from tests.factories import START, make_spec, make_wave

LEDGER_IDENTITY = SeriesNaming(b"salt", keep_ids=False)
STEPS, HORIZON, LEVELS = 90, 7, [0.1, 0.5, 0.9]
ENCODING = Encoding(
    calendar=("hour",),
    numeric={"promo": (0.5, 2.0)},
    categories={"sky": ("rain", "sun")},
    static={"region": ("north",)},
)
COLUMNS: dict[str, Any] = {
    "covariates": ("promo", "sky"),
    "static": ("region",),
    "channels": ("heat",),
    "calendar": ("hour",),
}


def make_model(encoding: Encoding | None = None, **fields: Any) -> FittedModel:
    spec = make_spec(**fields)
    read = encoding or Encoding()
    network = build_network(
        spec, seed=1, num_covariates=read.num_covariates, static_cardinalities=read.static_cardinalities
    ).requires_grad_(False)
    for weight in network.parameters():
        weight.add_(0.3 * weight.std() if weight.numel() > 1 else 0.1)
    errors = np.random.default_rng(0).normal(size=(20, 3, spec.horizon))
    return FittedModel(spec, "h", 4, START, read, network, calibrate(errors, np.ones(20)))


def make_history(steps: int = STEPS, *, gaps: bool = True) -> Series:
    y, clock = make_wave(steps), np.arange(steps + HORIZON + 20)
    if gaps:
        y[[3, 17, 18, 19, 20, 21, 40, 41, 66]] = np.nan
        y[7::4][:15] = np.nan  # a phase that is not seen for long
    sky = np.array(["sun", "rain", "hail"], dtype=object)[clock % 3]
    return Series(
        "a", START, "h", y, {"promo": clock % 5.0, "sky": sky}, {"region": "north"}, {"heat": np.cos(clock[:steps] / 3)}
    )


def append_later_steps(truncated: Series, full: Series, *, count: int, until: int) -> Series:
    """What is held of the first `count` steps, and the whole's steps from there on."""
    return replace(
        truncated,
        y=np.concatenate([truncated.y, full.y[count:until]]),
        covariates={
            name: np.concatenate([one, full.covariates[name][count:]]) for name, one in truncated.covariates.items()
        },
        channels={
            name: np.concatenate([one, full.channels[name][count:until]]) for name, one in truncated.channels.items()
        },
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"scaling": scaling, "base": base}
        for scaling in ("none", "mean_abs", "standard", "last", "level_season")
        for base in ("zero", "seasonal_naive")
    ]
    + [
        {"segment": 4, "decoder": "direct", "base": "last", "cell": "lstm"},
        {"lags": (24, 30), "transform": "log"},
        {"encoding": ENCODING, **COLUMNS, "base": "linear"},
        {"season": 4, "context": 4, "lags": (1,)},
    ]
    + [
        {"reads": "history", "scaling": scaling, "base": base}
        for scaling in ("none", "standard", "level_season")
        for base in ("zero", "seasonal_naive")
    ]
    + [
        {"reads": "history", "segment": 4, "cell": "lstm", "layers": 2},
        {"reads": "history", "segment": 8, "decoder": "direct", "transform": "log", "lags": (24,)},
        {"reads": "history", "encoding": ENCODING, **COLUMNS},
    ],
)
def test_a_forecast_from_a_truncated_history_equals_that_of_the_full_history(fields: dict[str, Any]) -> None:
    predictor, whole = Predictor(make_model(**fields)), make_history()
    rounding = 1e-5 if fields.get("reads") == "history" else 1e-9  # it is rolled by another engine than the whole
    held, done, lengths = predictor.truncate_history(whole.take_first(30)), 30, []
    for until in (30, 31, 34, 35, 50, 51, 77, 90):
        now = append_later_steps(held, whole, count=done, until=until)
        expected = predictor.forecast(whole.take_first(until), HORIZON, levels=LEVELS)
        found = predictor.forecast(now, HORIZON, levels=LEVELS)
        assert found.ds.equals(expected.ds)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=rounding)
        for level in LEVELS:
            np.testing.assert_allclose(found.quantiles[level], expected.quantiles[level], rtol=rounding, atol=rounding)
        held, done = predictor.truncate_history(now), until
        lengths.append(len(held))
    assert max(lengths) <= 16 + 30, "no more than the context and what lies before it for lags and base"
    assert lengths[-3:] == lengths[-1:] * 3


def test_the_number_of_rolled_steps_does_not_depend_on_the_history_length() -> None:
    forecaster, read = make_model(), []
    inner = Predictor(forecaster).engine

    class Counting:
        can_sample = False

        def roll_out(self, inputs: RolloutInput, *, horizon: int, noise: np.ndarray | None = None) -> np.ndarray:
            read.append(inputs.values.size)
            return inner.roll_out(inputs, horizon=horizon)

    predictor = Predictor(forecaster, engine=Counting())
    for steps in (100, 1000, 10_000):
        held = predictor.truncate_history(Series("a", START, "h", make_wave(steps)))
        predictor.forecast(replace(held, y=np.append(held.y, 1.5)), HORIZON)
        assert len(held) == 16
    assert read == [16] * 3


@pytest.mark.parametrize("season", [1, 4, 7])
@pytest.mark.parametrize("seed", range(5))
def test_scale_and_last_seasons_use_all_steps(season: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    y = np.where(draw.random(60) < 0.5, np.nan, draw.normal(size=60))
    held, past, done = y[:20], None, 20
    for until in (25, 26, 33, 59):
        held, past = drop_and_summarize(held, past, cut=len(held) - 9, season=season)
        held, done = np.concatenate([held, y[done:until]]), until
        assert history_scale(held, season, history_summary=past) == pytest.approx(
            history_scale(y[:until], season), rel=1e-12
        )
        if not np.isnan(held).all():
            np.testing.assert_array_equal(
                repeat_season(np.concatenate([past.last_season_values, held]), season, 9),
                repeat_season(y[:until], season, 9),
            )


def test_a_constant_history_has_no_scale_after_truncation() -> None:
    held, past = drop_and_summarize(np.full(30, 3.0), None, cut=20, season=4)
    assert history_scale(held, 4, history_summary=past) == 0
    assert isinstance(past, HistorySummary)
    assert history_scale(np.append(held, 4.0), 4, history_summary=past) == history_scale(
        np.append(np.full(30, 3.0), 4.0), 4
    )


def test_a_diverged_forecast_is_repaired_from_all_steps() -> None:
    class Exploding:
        can_sample = False

        def roll_out(self, inputs: RolloutInput, *, horizon: int, noise: np.ndarray | None = None) -> np.ndarray:
            return np.full((len(inputs.values), horizon), np.nan)

    predictor = Predictor(make_model(), engine=Exploding())
    y = make_wave(60)
    y[31::4] = np.nan  # the phase was last seen before the steps that are held
    whole = Series("a", START, "h", y)
    found, expected = predictor.forecast(predictor.truncate_history(whole), HORIZON), predictor.forecast(whole, HORIZON)
    np.testing.assert_array_equal(found.mean, expected.mean)
    assert found.warnings == expected.warnings


def test_the_ledger_scores_a_truncated_series_like_the_full_one() -> None:
    predictor, whole = Predictor(make_model()), make_history()
    columns = {"covariates": {}, "channels": {}, "static": {}}
    held = predictor.truncate_history(replace(whole, **columns).take_first(80))
    series = [replace(whole, **columns), append_later_steps(held, whole, count=80, until=STEPS)]
    made_of = [
        build_records(
            predictor,
            ModelIdentity("a", "1", "0" * 64),
            [one],
            [predictor.forecast(one, 5)],
            naming=LEDGER_IDENTITY,
            adaptive_state=None,
            made_at=[0.0],
        )[0]
        for one in series
    ]
    assert made_of[1].scale == pytest.approx(made_of[0].scale, rel=1e-12)
    assert made_of[1].units == pytest.approx(made_of[0].units, rel=1e-9)
    assert (made_of[1].key, made_of[1].origin) == (made_of[0].key, made_of[0].origin)
