"""A history cut down to what forecasts ask of it: with later values behind it, the forecast is that of the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from forecaster.data.batching import repeat_season
from forecaster.data.encoding import Encoding
from forecaster.engines.engine import Known
from forecaster.history_summary import Past, forget, history_scale
from forecaster.intervals.conformal import calibrate
from forecaster.ledger.recording import Keeping, made
from forecaster.ledger.records import Told
from forecaster.model.regressor import build
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Series
from tests.factories import START, make_spec, wave

KEEPING = Keeping(b"salt", clear=False)
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


def learned(encoding: Encoding | None = None, **fields: Any) -> Forecaster:
    spec = make_spec(**fields)
    read = encoding or Encoding()
    network = build(spec, seed=1, covariates=read.width, groups=read.sizes).requires_grad_(False)
    for weight in network.parameters():
        weight.add_(0.3 * weight.std() if weight.numel() > 1 else 0.1)
    errors = np.random.default_rng(0).normal(size=(20, 3, spec.horizon))
    return Forecaster(spec, "h", 4, START, read, network, calibrate(errors, np.ones(20)))


def history(steps: int = STEPS, *, gaps: bool = True) -> Series:
    y, clock = wave(steps), np.arange(steps + HORIZON + 20)
    if gaps:
        y[[3, 17, 18, 19, 20, 21, 40, 41, 66]] = np.nan
        y[7::4][:15] = np.nan  # a phase that is not seen for long
    sky = np.array(["sun", "rain", "hail"], dtype=object)[clock % 3]
    return Series(
        "a", START, "h", y, {"promo": clock % 5.0, "sky": sky}, {"region": "north"}, {"heat": np.cos(clock[:steps] / 3)}
    )


def behind(held: Series, whole: Series, *, done: int, until: int) -> Series:
    """What is held of the first `done` steps, and the whole's steps from there on."""
    return replace(
        held,
        y=np.concatenate([held.y, whole.y[done:until]]),
        covariates={
            name: np.concatenate([one, whole.covariates[name][done:]]) for name, one in held.covariates.items()
        },
        channels={name: np.concatenate([one, whole.channels[name][done:until]]) for name, one in held.channels.items()},
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
def test_a_forecast_from_what_is_carried_is_that_of_the_whole_history(fields: dict[str, Any]) -> None:
    predictor, whole = Predictor(learned(**fields)), history()
    rounding = 1e-5 if fields.get("reads") == "history" else 1e-9  # it is rolled by another engine than the whole
    held, done, lengths = predictor.carry(whole.until(30)), 30, []
    for until in (30, 31, 34, 35, 50, 51, 77, 90):
        now = behind(held, whole, done=done, until=until)
        expected = predictor.forecast(whole.until(until), HORIZON, levels=LEVELS)
        found = predictor.forecast(now, HORIZON, levels=LEVELS)
        assert found.ds.equals(expected.ds)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=rounding)
        for level in LEVELS:
            np.testing.assert_allclose(found.quantiles[level], expected.quantiles[level], rtol=rounding, atol=rounding)
        held, done = predictor.carry(now), until
        lengths.append(len(held))
    assert max(lengths) <= 16 + 30, "no more than the context and what lies before it for lags and base"
    assert lengths[-3:] == lengths[-1:] * 3


def test_as_many_steps_are_rolled_however_long_the_history_was() -> None:
    forecaster, read = learned(), []
    inner = Predictor(forecaster).engine

    class Counting:
        draws = False

        def roll(self, known: Known, *, horizon: int, noise: np.ndarray | None = None) -> np.ndarray:
            read.append(known.values.size)
            return inner.roll(known, horizon=horizon)

    predictor = Predictor(forecaster, engine=Counting())
    for steps in (100, 1000, 10_000):
        held = predictor.carry(Series("a", START, "h", wave(steps)))
        predictor.forecast(replace(held, y=np.append(held.y, 1.5)), HORIZON)
        assert len(held) == 16
    assert read == [16] * 3


@pytest.mark.parametrize("season", [1, 4, 7])
@pytest.mark.parametrize("seed", range(5))
def test_scale_and_last_seasons_are_those_of_all_steps(season: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    y = np.where(draw.random(60) < 0.5, np.nan, draw.normal(size=60))
    held, past, done = y[:20], None, 20
    for until in (25, 26, 33, 59):
        held, past = forget(held, past, cut=len(held) - 9, season=season)
        held, done = np.concatenate([held, y[done:until]]), until
        assert history_scale(held, season, past=past) == pytest.approx(history_scale(y[:until], season), rel=1e-12)
        if not np.isnan(held).all():
            np.testing.assert_array_equal(
                repeat_season(np.concatenate([past.latest, held]), season, 9), repeat_season(y[:until], season, 9)
            )


def test_a_history_that_never_changed_has_no_scale_though_most_of_it_is_gone() -> None:
    held, past = forget(np.full(30, 3.0), None, cut=20, season=4)
    assert history_scale(held, 4, past=past) == 0
    assert isinstance(past, Past)
    assert history_scale(np.append(held, 4.0), 4, past=past) == history_scale(np.append(np.full(30, 3.0), 4.0), 4)


def test_an_exploded_forecast_is_mended_from_all_steps() -> None:
    class Exploding:
        draws = False

        def roll(self, known: Known, *, horizon: int, noise: np.ndarray | None = None) -> np.ndarray:
            return np.full((len(known.values), horizon), np.nan)

    predictor = Predictor(learned(), engine=Exploding())
    y = wave(60)
    y[31::4] = np.nan  # the phase was last seen before the steps that are held
    whole = Series("a", START, "h", y)
    found, expected = predictor.forecast(predictor.carry(whole), HORIZON), predictor.forecast(whole, HORIZON)
    np.testing.assert_array_equal(found.mean, expected.mean)
    assert found.warnings == expected.warnings


def test_the_ledger_counts_errors_of_a_carried_series_as_of_the_whole() -> None:
    predictor, whole = Predictor(learned()), history()
    columns = {"covariates": {}, "channels": {}, "static": {}}
    held = predictor.carry(replace(whole, **columns).until(80))
    series = [replace(whole, **columns), behind(held, whole, done=80, until=STEPS)]
    made_of = [
        made(
            predictor,
            Told("a", "1", "0" * 64),
            [one],
            [predictor.forecast(one, 5)],
            keeping=KEEPING,
            drift=None,
            at=[0.0],
        )[0]
        for one in series
    ]
    assert made_of[1].scale == pytest.approx(made_of[0].scale, rel=1e-12)
    assert made_of[1].units == pytest.approx(made_of[0].units, rel=1e-9)
    assert (made_of[1].key, made_of[1].origin) == (made_of[0].key, made_of[0].origin)
