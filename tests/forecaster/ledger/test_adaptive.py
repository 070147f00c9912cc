"""Adaptive intervals: independent of the order and delay of actuals, and with nominal coverage again after a shift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.intervals.adaptive import AdaptiveState, update_adaptive_state
from forecaster.intervals.conformal import calibrate
from forecaster.ledger.accuracy import compute_accuracy, forecast_actual_pairs
from forecaster.ledger.adaptive import fit_adaptive_state, load_adaptive_state, refresh_adaptive_state
from forecaster.ledger.recording import SeriesNaming, build_records
from forecaster.ledger.records import (
    RECORDED_LEVELS,
    ForecastFilter,
    ModelIdentity,
    ObservedSeries,
    encode_timestamps,
    series_key,
)
from forecaster.ledger.store import Ledger
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Series
from tests.factories import START, make_fitted_model, make_spec

pytestmark = pytest.mark.integration

DIGEST = "d" * 64
SERIES_COUNT, STABLE_STEPS, SHIFTED_STEPS, HORIZON = 6, 30, 90, 2


@pytest.fixture
def open_ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def calibrated_model() -> FittedModel:
    """A network of random weights, calibrated on white noise of standard deviation one."""
    from dataclasses import replace

    uncalibrated = make_fitted_model(make_spec(context=16, horizon=HORIZON, season=4))
    rng = np.random.default_rng(0)
    y = 10 + rng.normal(size=(200, 40))
    predictor = Predictor(uncalibrated)
    histories = [Series(f"{index}", START, "h", row[:36]) for index, row in enumerate(y)]
    means = np.stack([forecast.mean for forecast in predictor.forecast_batch(histories, HORIZON)])  # type: ignore[union-attr]
    errors = (y[:, 36 : 36 + HORIZON] - means)[:, None, :]
    return replace(
        uncalibrated,
        calibration=calibrate(errors, np.array([predictor.compute_scale(history.y) for history in histories])),
    )


def white_noise(*, seed: int = 1, growth: float = 3.0) -> np.ndarray:
    """White noise whose standard deviation grows at one step; histories are long, so that their scale hardly changes."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(SERIES_COUNT, 400 + STABLE_STEPS + SHIFTED_STEPS + HORIZON))
    y[:, 400 + STABLE_STEPS :] *= growth
    return 10 + y


def serve_forecasts(
    ledger: Ledger, model: FittedModel, y: np.ndarray, *, adaptive: bool, report_every: int = 1
) -> None:
    """Forecasts step by step; actuals are reported every `report_every` steps, and adapt the intervals if `adaptive`."""
    predictor, naming = Predictor(model), SeriesNaming(ledger.salt, keep_ids=False)
    keys = [series_key(ledger.salt, f"{index}", START) for index in range(len(y))]
    timestamps = encode_timestamps(pd.date_range(START, periods=y.shape[1], freq="h"))
    adaptive_state: AdaptiveState | None = None
    for now in range(400, y.shape[1] - HORIZON):
        histories = [Series(f"{index}", START, "h", row[:now]) for index, row in enumerate(y)]
        forecasts = predictor.forecast_batch(histories, HORIZON, levels=RECORDED_LEVELS, adaptive_state=adaptive_state)
        records = build_records(
            predictor,
            ModelIdentity("m", "1", DIGEST),
            histories,
            forecasts,
            naming=naming,
            adaptive_state=adaptive_state,
            made_at=[float(now)] * SERIES_COUNT,
        )  # type: ignore[arg-type]
        assert records[0].quantiles[0.9] == pytest.approx(forecasts[0].quantiles[0.9].tolist())  # type: ignore[union-attr]
        ledger.record(records)
        if adaptive and now % report_every == 0:
            first = max(0, now - report_every)
            observations = [
                ObservedSeries(key, timestamps[first:now], row[first:now].tolist())
                for key, row in zip(keys, y, strict=True)
            ]
            ledger.observe(observations, now=float(now))
            refresh_adaptive_state(ledger, DIGEST, now=float(now))
            adaptive_state = load_adaptive_state(ledger, DIGEST)
    ledger.observe([ObservedSeries(key, timestamps, row.tolist()) for key, row in zip(keys, y, strict=True)], now=1e6)


def test_coverage_recovers_after_a_distribution_shift(
    open_ledger: Ledger, calibrated_model: FittedModel, tmp_path: Path
) -> None:
    y = white_noise()
    serve_forecasts(open_ledger, calibrated_model, y, adaptive=True)
    static_ledger = Ledger(f"sqlite:///{tmp_path}/static.db")
    serve_forecasts(static_ledger, calibrated_model, y, adaptive=False)
    all_forecasts, late_forecasts = (
        ForecastFilter(since=0.0),
        ForecastFilter(since=400.0 + STABLE_STEPS + SHIFTED_STEPS / 2),
    )
    assert (
        compute_accuracy(static_ledger, all_forecasts).overall.n
        == compute_accuracy(open_ledger, all_forecasts).overall.n
    )
    static_coverage, adaptive_coverage = (
        compute_accuracy(ledger, late_forecasts).overall.coverage for ledger in (static_ledger, open_ledger)
    )
    static_ledger.close()
    assert static_coverage[0.8] < 0.6, "three times the noise exceeds intervals that do not adapt"
    assert abs(adaptive_coverage[0.8] - 0.8) < 0.06
    assert abs(adaptive_coverage[0.95] - 0.95) < 0.06


def test_late_batched_and_duplicate_actuals_give_the_same_adaptive_state(
    open_ledger: Ledger, calibrated_model: FittedModel
) -> None:
    y = white_noise()[:, :450]
    serve_forecasts(open_ledger, calibrated_model, y, adaptive=False)  # all actuals are reported at the end
    late = refresh_adaptive_state(open_ledger, DIGEST, now=0.0)
    keys = [series_key(open_ledger.salt, f"{index}", START) for index in range(SERIES_COUNT)]
    timestamps = encode_timestamps(pd.date_range(START, periods=y.shape[1], freq="h"))
    open_ledger.observe(
        [ObservedSeries(key, timestamps, row.tolist()) for key, row in zip(keys, y, strict=True)], now=2e6
    )
    assert refresh_adaptive_state(open_ledger, DIGEST, now=0.0) == late == load_adaptive_state(open_ledger, DIGEST)
    frame = pd.concat(forecast_actual_pairs(open_ledger, ForecastFilter()), ignore_index=True)
    assert fit_adaptive_state(frame.sample(frac=1.0, random_state=0)).shifts_at(RECORDED_LEVELS) == pytest.approx(
        late.shifts_at(RECORDED_LEVELS)
    )


def test_served_quantiles_include_the_adaptive_offset_and_it_is_not_applied_twice(
    open_ledger: Ledger, calibrated_model: FittedModel
) -> None:
    """The resulting state is the same whether forecasts were served with an adaptive state or without."""
    y = white_noise()[:, :440]
    predictor, naming = Predictor(calibrated_model), SeriesNaming(open_ledger.salt, keep_ids=False)
    timestamps = encode_timestamps(pd.date_range(START, periods=y.shape[1], freq="h"))
    for digest, adaptive_state in (("a" * 64, None), ("b" * 64, AdaptiveState(0.1, ((0.1, -0.7), (0.9, 1.3))))):
        for now in range(400, 436):
            histories = [Series(f"{index}", START, "h", row[:now]) for index, row in enumerate(y)]
            forecasts = predictor.forecast_batch(histories, HORIZON)
            open_ledger.record(
                build_records(
                    predictor,
                    ModelIdentity("m", "1", digest),
                    histories,
                    forecasts,
                    naming=naming,
                    adaptive_state=adaptive_state,
                    made_at=[0.0] * SERIES_COUNT,
                )  # type: ignore[arg-type]
            )
    for index, row in enumerate(y):
        open_ledger.observe(
            [ObservedSeries(series_key(open_ledger.salt, f"{index}", START), timestamps, row.tolist())], now=1.0
        )
    shifts = [
        refresh_adaptive_state(open_ledger, digest, now=0.0).shifts_at(RECORDED_LEVELS)
        for digest in ("a" * 64, "b" * 64)
    ]
    assert shifts[0] == pytest.approx(shifts[1], abs=1e-9)


def test_one_timestamp_is_one_update_as_computed_by_hand() -> None:
    fields = {"stamp": [1, 1, 2], "actual": [5.0, -5.0, 5.0], "unit": [1.0, 1.0, 1.0]}
    frame = pd.DataFrame(
        fields
        | {level: [0.0] * 3 for level in RECORDED_LEVELS}
        | {("shift", level): [0.0] * 3 for level in RECORDED_LEVELS}
    )
    expected = AdaptiveState(0.5)  # a tenth of the residuals, which are of five spreads
    for covered in (0.5, 0.0):  # one of two at the first timestamp, none at the second
        for level in RECORDED_LEVELS:
            expected = update_adaptive_state(expected, level, covered)
    assert fit_adaptive_state(frame) == expected


def test_uncalibrated_forecasts_do_not_update_the_adaptive_state(open_ledger: Ledger) -> None:
    predictor = Predictor(make_fitted_model(make_spec()))
    histories = [Series("a", START, "h", white_noise()[0, :40])]
    forecasts = predictor.forecast_batch(histories, 3)
    open_ledger.record(
        build_records(
            predictor,
            ModelIdentity("m", "1", DIGEST),
            histories,
            forecasts,
            naming=SeriesNaming(open_ledger.salt, keep_ids=True),
            adaptive_state=None,
            made_at=[0.0],
        )  # type: ignore[arg-type]
    )
    open_ledger.observe(
        [ObservedSeries(series_key(open_ledger.salt, "a", START), encode_timestamps(forecasts[0].ds), [1.0] * 3)],
        now=0.0,
    )  # type: ignore[union-attr]
    assert compute_accuracy(open_ledger, ForecastFilter()).overall.n == 3
    assert refresh_adaptive_state(open_ledger, DIGEST, now=0.0) == AdaptiveState()
    assert load_adaptive_state(open_ledger, "e" * 64) is None
