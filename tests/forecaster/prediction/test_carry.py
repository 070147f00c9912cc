"""Tests of truncated histories: extended by later values, their forecasts equal those of the full history."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from forecaster.data.batching import repeat_season
from forecaster.data.encoding import Encoding
from forecaster.engines.engine import RolloutInput
from forecaster.intervals.conformal import calibrate
from forecaster.ledger.recording import SeriesNaming, build_records
from forecaster.ledger.records import ModelIdentity
from forecaster.model.regressor import build_network
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from forecaster.series.history_summary import HistorySummary, drop_and_summarize, history_scale
from tests.factories import START, make_spec, make_wave

pytestmark = pytest.mark.integration

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
    network_encoding = encoding or Encoding()
    network = build_network(
        spec,
        seed=1,
        num_covariates=network_encoding.num_covariates,
        static_cardinalities=network_encoding.static_cardinalities,
    ).requires_grad_(False)
    for weight in network.parameters():
        weight.add_(0.3 * weight.std() if weight.numel() > 1 else 0.1)
    errors = np.random.default_rng(0).normal(size=(20, 3, spec.horizon))
    return FittedModel(spec, "h", 4, START, network_encoding, network, calibrate(errors, np.ones(20)))


def make_history(steps: int = STEPS, *, gaps: bool = True) -> Series:
    y, step_index = make_wave(steps), np.arange(steps + HORIZON + 20)
    if gaps:
        y[[3, 17, 18, 19, 20, 21, 40, 41, 66]] = np.nan
        y[7::4][:15] = np.nan  # one phase is missing for many seasons
    sky = np.array(["sun", "rain", "hail"], dtype=object)[step_index % 3]
    return Series(
        "a",
        START,
        "h",
        y,
        {"promo": step_index % 5.0, "sky": sky},
        {"region": "north"},
        {"heat": np.cos(step_index[:steps] / 3)},
    )


def append_later_steps(truncated: Series, full: Series, *, count: int, until: int) -> Series:
    """Returns a truncated history of the first `count` steps, extended by the steps of the full history until `until`."""
    return replace(
        truncated,
        y=np.concatenate([truncated.y, full.y[count:until]]),
        covariates={
            name: np.concatenate([values, full.covariates[name][count:]])
            for name, values in truncated.covariates.items()
        },
        channels={
            name: np.concatenate([values, full.channels[name][count:until]])
            for name, values in truncated.channels.items()
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
        {"reads": "history", "scaling": "running", "base": "last", "segment": 2},
        {"scaling": "running", "features": "seasonal", "base": "mixture", "decoder": "direct"},
        {
            "reads": "history",
            "scaling": "running",
            "features": "seasonal",
            "base": "mixture",
            "decoder": "direct",
            "segment": 2,
        },
        {"reads": "history", "segment": 8, "decoder": "direct", "transform": "log", "lags": (24,)},
        {"reads": "history", "encoding": ENCODING, **COLUMNS},
    ],
)
def test_a_forecast_from_a_truncated_history_equals_that_of_the_full_history(fields: dict[str, Any]) -> None:
    predictor, full = Predictor(make_model(**fields)), make_history()
    tolerance = 1e-5 if fields.get("reads") == "history" else 1e-9  # the truncated history uses another engine
    truncated, count, lengths = predictor.truncate_history(full.take_first(30)), 30, []
    for until in (30, 31, 34, 35, 50, 51, 77, 90):
        extended = append_later_steps(truncated, full, count=count, until=until)
        expected = predictor.forecast(full.take_first(until), HORIZON, levels=LEVELS)
        forecast = predictor.forecast(extended, HORIZON, levels=LEVELS)
        assert forecast.ds.equals(expected.ds)
        np.testing.assert_allclose(forecast.mean, expected.mean, rtol=tolerance)
        for level in LEVELS:
            np.testing.assert_allclose(
                forecast.quantiles[level], expected.quantiles[level], rtol=tolerance, atol=tolerance
            )
        truncated, count = predictor.truncate_history(extended), until
        lengths.append(len(truncated))
    assert max(lengths) <= 16 + 30, "at most the context, and the steps before it for lags and base"
    assert lengths[-3:] == lengths[-1:] * 3


def test_the_number_of_rolled_steps_does_not_depend_on_the_history_length() -> None:
    fitted_model, input_sizes = make_model(), []
    engine = Predictor(fitted_model).engine

    class CountingEngine:
        can_sample = False

        def roll_out(self, inputs: RolloutInput, *, horizon: int, noise: np.ndarray | None = None) -> np.ndarray:
            input_sizes.append(inputs.values.size)
            return engine.roll_out(inputs, horizon=horizon)

    predictor = Predictor(fitted_model, engine=CountingEngine())
    for steps in (100, 1000, 10_000):
        truncated = predictor.truncate_history(Series("a", START, "h", make_wave(steps)))
        predictor.forecast(replace(truncated, y=np.append(truncated.y, 1.5)), HORIZON)
        assert len(truncated) == 16
    assert input_sizes == [16] * 3


@pytest.mark.parametrize("season", [1, 4, 7])
@pytest.mark.parametrize("seed", range(5))
def test_scale_and_last_seasons_use_all_steps(season: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.where(rng.random(60) < 0.5, np.nan, rng.normal(size=60))
    held, history_summary, count = y[:20], None, 20
    for until in (25, 26, 33, 59):
        held, history_summary = drop_and_summarize(held, history_summary, cut=len(held) - 9, season=season)
        held, count = np.concatenate([held, y[count:until]]), until
        assert history_scale(held, season, history_summary=history_summary) == pytest.approx(
            history_scale(y[:until], season), rel=1e-12
        )
        if not np.isnan(held).all():
            np.testing.assert_array_equal(
                repeat_season(np.concatenate([history_summary.last_season_values, held]), season, 9),
                repeat_season(y[:until], season, 9),
            )


def test_a_constant_history_has_no_scale_after_truncation() -> None:
    held, history_summary = drop_and_summarize(np.full(30, 3.0), None, cut=20, season=4)
    assert history_scale(held, 4, history_summary=history_summary) == 0
    assert isinstance(history_summary, HistorySummary)
    assert history_scale(np.append(held, 4.0), 4, history_summary=history_summary) == history_scale(
        np.append(np.full(30, 3.0), 4.0), 4
    )


def test_a_diverged_forecast_is_repaired_from_all_steps() -> None:
    class DivergingEngine:
        can_sample = False

        def roll_out(self, inputs: RolloutInput, *, horizon: int, noise: np.ndarray | None = None) -> np.ndarray:
            return np.full((len(inputs.values), horizon), np.nan)

    predictor = Predictor(make_model(), engine=DivergingEngine())
    y = make_wave(60)
    y[31::4] = np.nan  # the phase was last observed before the held steps
    full = Series("a", START, "h", y)
    forecast = predictor.forecast(predictor.truncate_history(full), HORIZON)
    expected = predictor.forecast(full, HORIZON)
    np.testing.assert_array_equal(forecast.mean, expected.mean)
    assert forecast.warnings == expected.warnings


def test_the_ledger_scores_a_truncated_series_like_the_full_one() -> None:
    predictor, full = Predictor(make_model()), make_history()
    columns = {"covariates": {}, "channels": {}, "static": {}}
    truncated = predictor.truncate_history(replace(full, **columns).take_first(80))
    series = [replace(full, **columns), append_later_steps(truncated, full, count=80, until=STEPS)]
    records = [
        build_records(
            predictor,
            ModelIdentity("a", "1", "0" * 64),
            [item],
            [predictor.forecast(item, 5)],
            naming=LEDGER_IDENTITY,
            adaptive_state=None,
            made_at=[0.0],
        )[0]
        for item in series
    ]
    assert records[1].scale == pytest.approx(records[0].scale, rel=1e-12)
    assert records[1].units == pytest.approx(records[0].units, rel=1e-9)
    assert (records[1].key, records[1].origin) == (records[0].key, records[0].origin)
