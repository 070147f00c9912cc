"""Late actuals move the intervals: whatever their order and however late, and so that coverage comes back after a shift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.intervals.adaptive import Drift, update
from forecaster.intervals.conformal import calibrate
from forecaster.ledger.accuracy import accuracy, pairs
from forecaster.ledger.adaptive import adapt, learned, read
from forecaster.ledger.recording import Keeping, made
from forecaster.ledger.records import LEVELS, Observed, Told, Which, key_of, ticks
from forecaster.ledger.store import Ledger
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Series
from tests.factories import START, make_forecaster, make_spec

DIGEST = "d" * 64
SERIES, CALM, SHIFTED, HORIZON = 6, 30, 90, 2


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    one = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield one
    one.close()


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    """Any network, calibrated on white noise of standard deviation one."""
    from dataclasses import replace

    plain = make_forecaster(make_spec(context=16, horizon=HORIZON, season=4))
    draw = np.random.default_rng(0)
    y = 10 + draw.normal(size=(200, 40))
    predictor = Predictor(plain)
    known = [Series(f"{place}", START, "h", row[:36]) for place, row in enumerate(y)]
    means = np.stack([one.mean for one in predictor.forecast_each(known, HORIZON)])  # type: ignore[union-attr]
    errors = (y[:, 36 : 36 + HORIZON] - means)[:, None, :]
    return replace(plain, calibration=calibrate(errors, np.array([predictor.scale(one.y) for one in known])))


def noise(*, seed: int = 1, grown: float = 3.0) -> np.ndarray:
    """White noise whose standard deviation grows at once; histories are long, so that their scale hardly follows."""
    draw = np.random.default_rng(seed)
    y = draw.normal(size=(SERIES, 400 + CALM + SHIFTED + HORIZON))
    y[:, 400 + CALM :] *= grown
    return 10 + y


def serve(ledger: Ledger, forecaster: Forecaster, y: np.ndarray, *, adaptive: bool, told_every: int = 1) -> None:
    """Forecasts step by step; what came is told every so often, and moves what is served then, or does not."""
    predictor, keeping = Predictor(forecaster), Keeping(ledger.salt, clear=False)
    keys = [key_of(ledger.salt, f"{place}", START) for place in range(len(y))]
    stamps = ticks(pd.date_range(START, periods=y.shape[1], freq="h"))
    drift: Drift | None = None
    for now in range(400, y.shape[1] - HORIZON):
        known = [Series(f"{place}", START, "h", row[:now]) for place, row in enumerate(y)]
        told = predictor.forecast_each(known, HORIZON, levels=LEVELS, drift=drift)
        records = made(
            predictor, Told("m", "1", DIGEST), known, told, keeping=keeping, drift=drift, at=[float(now)] * SERIES
        )  # type: ignore[arg-type]
        assert records[0].quantiles[0.9] == pytest.approx(told[0].quantiles[0.9].tolist())  # type: ignore[union-attr]
        ledger.record(records)
        if adaptive and now % told_every == 0:
            first = max(0, now - told_every)
            came = [Observed(key, stamps[first:now], row[first:now].tolist()) for key, row in zip(keys, y, strict=True)]
            ledger.observe(came, at=float(now))
            adapt(ledger, DIGEST, at=float(now))
            drift = read(ledger, DIGEST)
    ledger.observe([Observed(key, stamps, row.tolist()) for key, row in zip(keys, y, strict=True)], at=1e6)


def test_coverage_comes_back_after_a_shift(ledger: Ledger, forecaster: Forecaster, tmp_path: Path) -> None:
    y = noise()
    serve(ledger, forecaster, y, adaptive=True)
    still = Ledger(f"sqlite:///{tmp_path}/still.db")
    serve(still, forecaster, y, adaptive=False)
    calm, late = Which(since=0.0), Which(since=400.0 + CALM + SHIFTED / 2)
    assert accuracy(still, calm).overall.n == accuracy(ledger, calm).overall.n
    without, with_it = (accuracy(one, late).overall.coverage for one in (still, ledger))
    still.close()
    assert without[0.8] < 0.6, "three times the noise breaks intervals that do not follow"
    assert abs(with_it[0.8] - 0.8) < 0.06
    assert abs(with_it[0.95] - 0.95) < 0.06


def test_actuals_that_come_late_all_at_once_or_again_teach_the_same(ledger: Ledger, forecaster: Forecaster) -> None:
    y = noise()[:, :450]
    serve(ledger, forecaster, y, adaptive=False)  # all that came is told at the end
    late = adapt(ledger, DIGEST, at=0.0)
    keys = [key_of(ledger.salt, f"{place}", START) for place in range(SERIES)]
    stamps = ticks(pd.date_range(START, periods=y.shape[1], freq="h"))
    ledger.observe([Observed(key, stamps, row.tolist()) for key, row in zip(keys, y, strict=True)], at=2e6)
    assert adapt(ledger, DIGEST, at=0.0) == late == read(ledger, DIGEST)
    frame = pd.concat(pairs(ledger, Which()), ignore_index=True)
    assert learned(frame.sample(frac=1.0, random_state=0)).at(LEVELS) == pytest.approx(late.at(LEVELS))


def test_quantiles_as_served_hold_the_drift_and_it_is_not_counted_twice(ledger: Ledger, forecaster: Forecaster) -> None:
    """What is learned is the same whether forecasts were served with a drift or without."""
    y = noise()[:, :440]
    predictor, keeping = Predictor(forecaster), Keeping(ledger.salt, clear=False)
    stamps = ticks(pd.date_range(START, periods=y.shape[1], freq="h"))
    found = []
    for digest, drift in (("a" * 64, None), ("b" * 64, Drift(0.1, ((0.1, -0.7), (0.9, 1.3))))):
        for now in range(400, 436):
            known = [Series(f"{place}", START, "h", row[:now]) for place, row in enumerate(y)]
            told = predictor.forecast_each(known, HORIZON)
            ledger.record(
                made(predictor, Told("m", "1", digest), known, told, keeping=keeping, drift=drift, at=[0.0] * SERIES)  # type: ignore[arg-type]
            )
    for place, row in enumerate(y):
        ledger.observe([Observed(key_of(ledger.salt, f"{place}", START), stamps, row.tolist())], at=1.0)
    found = [adapt(ledger, digest, at=0.0).at(LEVELS) for digest in ("a" * 64, "b" * 64)]
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_a_stamp_is_one_update_by_hand() -> None:
    fields = {"stamp": [1, 1, 2], "actual": [5.0, -5.0, 5.0], "unit": [1.0, 1.0, 1.0]}
    frame = pd.DataFrame(
        fields | {level: [0.0] * 3 for level in LEVELS} | {("shift", level): [0.0] * 3 for level in LEVELS}
    )
    expected = Drift(0.5)  # a tenth of the residuals, which are five spreads
    for covered in (0.5, 0.0):  # one of two at the first stamp, none at the second
        for level in LEVELS:
            expected = update(expected, level, covered)
    assert learned(frame) == expected


def test_nothing_is_learned_of_what_was_not_calibrated(ledger: Ledger) -> None:
    predictor = Predictor(make_forecaster(make_spec()))
    known = [Series("a", START, "h", noise()[0, :40])]
    told = predictor.forecast_each(known, 3)
    ledger.record(
        made(
            predictor,
            Told("m", "1", DIGEST),
            known,
            told,
            keeping=Keeping(ledger.salt, clear=True),
            drift=None,
            at=[0.0],
        )  # type: ignore[arg-type]
    )
    ledger.observe([Observed(key_of(ledger.salt, "a", START), ticks(told[0].ds), [1.0] * 3)], at=0.0)  # type: ignore[union-attr]
    assert accuracy(ledger, Which()).overall.n == 3
    assert adapt(ledger, DIGEST, at=0.0) == Drift()
    assert read(ledger, "e" * 64) is None
