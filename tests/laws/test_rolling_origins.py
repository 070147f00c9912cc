"""All origins at once are what is said at each of them alone: for every cell, decoder, scaling and base, and both readings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.data.encoding import learn
from forecaster.data.split import origins
from forecaster.data.windows import Window
from forecaster.errors import HorizonOutOfRange
from forecaster.evaluation.rolling_origins import all_origins
from forecaster.model.regressor import build
from forecaster.model.rollout import roll, warm_up
from forecaster.model.rollout_origins import memories
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Forecast, Panel, Series
from forecaster.spec import Spec
from tests.factories import START, make_forecaster, make_spec, one_series, wave
from tests.laws.test_every_combination import scaled

READINGS = {"window": ["none", "mean_abs", "standard", "last", "level_season", "standard of log"]}
READINGS["history"] = [scaling for scaling in READINGS["window"] if scaling != "last"]
BASES = ["zero", "last", "seasonal_naive", "linear"]
CLOSE = 1e-5  # of the history's size
MARK = 1e6  # no sample has such a value

every_kind = pytest.mark.parametrize(
    ("reads", "cell", "decoder"), list(product(READINGS, ["gru", "lstm", "elman"], ["rollout", "direct"]))
)


def told_panel() -> list[Series]:
    """Whole, begun late, with gaps, begun flat, shorter than a context, and as good as empty; each with columns beside it."""
    draw = np.random.default_rng(0)
    values = [wave(steps, seed=number) for number, steps in enumerate((31, 28, 29, 33, 5, 24))]
    values[1][:8] = np.nan
    values[2][draw.random(29) < 0.3] = np.nan
    values[2][12:20] = np.nan  # nothing for more than a context
    values[3][:10] = 2.0
    values[5][:18] = np.nan
    rain = [draw.normal(size=len(y)) for y in values]
    rain[0][:15] = np.nan  # begins after y
    rain[2][:] = np.nan  # never observed
    rain[3][5:20] = rain[3][5]
    return [
        Series(
            f"series_{number}",
            START,
            "h",
            y,
            {"heat": draw.normal(size=len(y) + number)},
            {"region": "north" if number % 2 else "south"},
            {"rain": beside},
        )
        for number, (y, beside) in enumerate(zip(values, rain, strict=True))
    ]


def predictors(reads: str, cell: str, decoder: str) -> Iterator[Predictor]:
    """One for each scaling and base, of alternating segments, lags, layers, covariates and shortest histories."""
    panel = Panel(told_panel(), "h")
    for number, (scaling, base) in enumerate(product(READINGS[reads], BASES)):
        segment, plain = (1, 3, 2)[number % 3], number % 4 != 2
        fields: dict[str, Any] = {
            "name": "law",
            "context": 6,
            "horizon": 5,
            "min_history": (6, 3, 1)[number % 3],
            "season": 4,
            "reads": reads,
            "segment": segment,
            "decoder": decoder,
            "base": base,
            **scaled(scaling),
            "lags": (6,) if number % 5 == 0 else (),
            "calendar": () if plain else ("hour",),
            "covariates": () if plain else ("heat",),
            "static": ("region",) if number % 2 else (),
            "channels": ("rain",) if number % 4 > 1 else (),
            "network": {"cell": cell, "hidden": 5, "layers": 2, "residual": True, "dilations": (1, 3)}
            if number % 3 == 0
            else {"cell": cell, "hidden": 5},
        }
        spec = Spec.parse(fields, where="law")
        encoding = learn(panel, calendar=spec.calendar, covariates=spec.covariates, static=spec.static)
        network = build(spec, seed=number, season=4, covariates=encoding.width, groups=encoding.sizes).eval()
        draw = torch.Generator().manual_seed(number)
        for parameter in network.requires_grad_(False).parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
        yield Predictor(Forecaster(spec, "h", 4, START, encoding, network))


def one_by_one(predictor: Predictor, series: Sequence[Series], lefts: range, horizon: int) -> np.ndarray:
    """The forecasts at every origin from the history that was known there, cut and sent like any other."""
    found = np.full((len(series), len(lefts), horizon), np.nan)
    at = [(row, place) for row, one in enumerate(series) for place, left in enumerate(lefts) if len(one) > left]
    histories = [series[row].until(len(series[row]) - lefts[place]) for row, place in at]
    for (row, place), outcome in zip(at, predictor.forecast_each(histories, horizon), strict=True):
        if isinstance(outcome, Forecast):
            found[row, place] = outcome.mean
    return found


def assert_close(found: np.ndarray, expected: np.ndarray, series: Sequence[Series]) -> None:
    assert np.array_equal(np.isfinite(found), np.isfinite(expected))
    for one, row, other in zip(series, found, expected, strict=True):
        size = max(np.nanmax(np.abs(one.y)), np.nanmax(np.abs(other), initial=0.0))
        np.testing.assert_allclose(row, other, rtol=0, atol=CLOSE * size)


@every_kind
def test_all_origins_at_once_are_what_is_said_at_each_alone(reads: str, cell: str, decoder: str) -> None:
    series = told_panel()
    for number, predictor in enumerate(predictors(reads, cell, decoder)):
        horizon, stride, windows = (5, 3, 8)[number % 3], (1, 2, 5)[number % 3], (24, 9, 6)[number % 3]
        found = all_origins(predictor, series, horizon=horizon, windows=windows, stride=stride)
        lefts = origins(windows=windows, horizon=horizon, stride=stride)
        assert_close(found, one_by_one(predictor, series, lefts, horizon), series)
        assert np.isfinite(found).any(axis=(1, 2)).tolist()[:4] == [True] * 4


@every_kind
def test_what_comes_after_an_origin_changes_nothing_that_was_said_there(reads: str, cell: str, decoder: str) -> None:
    y, windows, horizon = wave(24), 16, 3
    for predictor in list(predictors(reads, cell, decoder))[1::4]:  # those without columns beside y
        plain = all_origins(predictor, [one_series(y)], horizon=horizon, windows=windows, stride=1)[0]
        assert np.isfinite(plain).all()
        for place in range(0, windows - 1, 4):
            cut = len(y) - horizon - windows + 1 + place
            other = y.copy()
            other[cut:] = MARK * np.random.default_rng(5).normal(size=len(y) - cut)
            changed = all_origins(predictor, [one_series(other)], horizon=horizon, windows=windows, stride=1)[0]
            np.testing.assert_allclose(changed[: place + 1], plain[: place + 1], rtol=0, atol=CLOSE * y.max())
            assert not np.allclose(changed[place + 1], plain[place + 1], rtol=1e-3)


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("count", "every"), [(1, 4), (2, 2), (7, 2), (40, 1), (41, 1)])
def test_the_memory_at_a_place_is_that_of_reading_up_to_it(
    cell: str, rows: int, count: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forecaster.model.rollout_origins.MEMORIES_AT_ONCE", 17 * rows)
    spec = make_spec(cell=cell, layers=2, scaling="level_season", reads="history", base="last", lags=(3,))
    network, draw = make_forecaster(spec).network, torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
    values = torch.from_numpy(np.stack([wave(network.lead + 60, seed=row) for row in range(rows)]))
    values[:, : network.lead] = torch.nan
    found = []
    for memory in memories(network, Window(values), every=every, count=count):
        assert len(memory.output) <= 18 * rows
        found += roll(network, memory, horizon=6)[0].unflatten(0, (-1, rows)).unbind()
    assert len(found) == count
    for place, forecast in enumerate(found):
        known = Window(values[:, : values.shape[1] - (count - 1 - place) * every])
        alone = roll(network, warm_up(network, known), horizon=6)[0]
        torch.testing.assert_close(forecast, alone, rtol=0, atol=1e-5)


def test_more_rows_than_fit_at_once_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    series = [one_series(wave(steps, seed=steps), name=str(steps)) for steps in (30, 18, 42, 25, 30)]
    for reads in READINGS:
        predictor = Predictor(make_forecaster(make_spec(cell="lstm", reads=reads, segment=2)))
        whole = all_origins(predictor, series, horizon=3, windows=12, stride=1)
        with monkeypatch.context() as patch:
            patch.setattr("forecaster.prediction.predictor.ROWS_AT_ONCE", 2)
            patch.setattr("forecaster.prediction.predictor.VALUES_AT_ONCE", 60)
            patch.setattr("forecaster.evaluation.rolling_origins.ROWS_AT_ONCE", 3)
            patch.setattr("forecaster.model.rollout.SEGMENTS_AT_ONCE", 5)
            turns = all_origins(predictor, series, horizon=3, windows=12, stride=1)
        assert_close(turns, whole, series)
        assert np.isfinite(whole).sum() > 100


@pytest.mark.parametrize("reads", READINGS)
def test_an_origin_with_a_fault_has_no_forecast_and_spoils_none(reads: str) -> None:
    predictor = Predictor(make_forecaster(make_spec(reads=reads)))
    good, infinite = one_series(wave(40)), wave(40)
    infinite[30] = np.inf
    bad = [one_series(infinite), one_series(wave(40), freq="D"), one_series(np.full(40, np.nan)), one_series(wave(3))]
    found = all_origins(predictor, [bad[0], good, *bad[1:]], horizon=4, windows=10, stride=1)
    assert np.isfinite(found[0]).all(axis=1).tolist() == [True] * 4 + [False] * 6, "known up to step 27, 28, 29, 30"
    assert np.isfinite(found[1]).all()
    assert np.isnan(found[2:]).all()
    assert_close(
        found[:2], one_by_one(predictor, [bad[0], good], origins(windows=10, horizon=4, stride=1), 4), [good] * 2
    )


@pytest.mark.parametrize("reads", READINGS)
def test_a_covariate_that_is_missing_takes_away_the_origins_that_would_read_it(reads: str) -> None:
    spec = make_spec(reads=reads, covariates=("heat",), context=6)
    heat = np.random.default_rng(1).normal(size=40)
    panel = Panel([Series("a", START, "h", wave(40), {"heat": heat})], "h")
    network = build(spec, seed=1, season=4, covariates=1).eval().requires_grad_(False)
    predictor = Predictor(
        Forecaster(spec, "h", 4, START, learn(panel, calendar=(), covariates=("heat",), static=()), network)
    )
    gone = heat.copy()
    gone[20] = np.nan
    series = [*panel.series, Series("b", START, "h", wave(40), {"heat": gone}), Series("c", START, "h", wave(40))]
    lefts = origins(windows=30, horizon=4, stride=1)
    found = all_origins(predictor, series, horizon=4, windows=30, stride=1)
    assert_close(found[:2], one_by_one(predictor, series[:2], lefts, 4), series[:2])
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[2]).all()
    answered = [len(series[1]) - left for left, row in zip(lefts, found[1], strict=True) if np.isfinite(row).all()]
    assert answered == [*range(7, 17), *(range(27, 37) if reads == "window" else ())]


@pytest.mark.parametrize("reads", READINGS)
def test_a_forecast_that_explodes_goes_on_as_seasonal_naive_at_its_origin_alone(reads: str) -> None:
    forecaster = make_forecaster(make_spec(scaling="none", base="last", reads=reads))
    with torch.no_grad():  # every step is 5000 more than the one before
        forecaster.network.output.weight.zero_()
        forecaster.network.output.bias.fill_(5e3)
    predictor, y = Predictor(forecaster), wave(60)
    y[30] = 50.0  # where this was seen, far values are believed
    found = all_origins(predictor, [one_series(y)], horizon=6, windows=12, stride=3)
    lefts = origins(windows=12, horizon=6, stride=3)
    assert_close(found, one_by_one(predictor, [one_series(y)], lefts, 6), [one_series(y)])
    calm = [found[0, place, -1] > 1e4 for place in range(12)]
    seen = [30 < 60 - left <= (46 if reads == "window" else 60) for left in lefts]
    assert calm == seen
    assert found[0, 0, 5] == y[60 - lefts[0] - 3]


def test_no_origins_and_no_series_are_an_empty_answer_and_no_horizon_is_refused() -> None:
    predictor = Predictor(make_forecaster(make_spec()))
    assert all_origins(predictor, [], horizon=3, windows=2).shape == (0, 2, 3)
    assert all_origins(predictor, [one_series(wave(20))], horizon=3, windows=0).shape == (1, 0, 3)
    with pytest.raises(HorizonOutOfRange, match="at least 1 step; found 0"):
        all_origins(predictor, [one_series(wave(20))], horizon=0, windows=2)
