"""Forecasts from all origins at once equal those from each origin, for every cell, decoder, scaling, base and reading mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.data.encoding import fit_encoding
from forecaster.data.split import rolling_origins
from forecaster.data.windows import Window
from forecaster.errors import HorizonOutOfRange
from forecaster.evaluation.rolling_origins import forecast_all_origins
from forecaster.model.regressor import build_network
from forecaster.model.rollout import roll_out, warm_up
from forecaster.model.rollout_origins import states_at_origins
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Panel, Series
from forecaster.spec import Spec
from tests.case_selection import checkerboard_product
from tests.factories import START, make_fitted_model, make_series, make_spec, make_wave
from tests.laws.test_every_combination import scaling_fields

pytestmark = pytest.mark.integration

SCALINGS_BY_READS = {"window": ["none", "mean_abs", "standard", "last", "level_season", "standard of log"]}
SCALINGS_BY_READS["history"] = [scaling for scaling in SCALINGS_BY_READS["window"] if scaling != "last"]
BASES = ["zero", "last", "seasonal_naive", "linear"]
TOLERANCE = 1e-5  # relative to the history's magnitude
SENTINEL = 1e6  # far beyond all samples

every_kind = pytest.mark.parametrize(
    ("reads", "cell", "decoder"),
    checkerboard_product(SCALINGS_BY_READS, ["gru", "lstm", "elman"], ["rollout", "direct"]),
)


def make_panel_with_columns() -> list[Series]:
    """Series that are complete, begin late, have gaps, start constant, are shorter than a context, or almost empty."""
    rng = np.random.default_rng(0)
    values = [make_wave(steps, seed=index) for index, steps in enumerate((31, 28, 29, 33, 5, 24))]
    values[1][:8] = np.nan
    values[2][rng.random(29) < 0.3] = np.nan
    values[2][12:20] = np.nan  # a gap longer than a context
    values[3][:10] = 2.0
    values[5][:18] = np.nan
    rain = [rng.normal(size=len(y)) for y in values]
    rain[0][:15] = np.nan  # begins after y
    rain[2][:] = np.nan  # never observed
    rain[3][5:20] = rain[3][5]
    return [
        Series(
            f"series_{index}",
            START,
            "h",
            y,
            {"heat": rng.normal(size=len(y) + index)},
            {"region": "north" if index % 2 else "south"},
            {"rain": rain_values},
        )
        for index, (y, rain_values) in enumerate(zip(values, rain, strict=True))
    ]


def make_predictors(reads: str, cell: str, decoder: str) -> Iterator[Predictor]:
    """Builds one predictor for each scaling and base; segments, lags, layers, covariates and minimum histories alternate."""
    panel = Panel(make_panel_with_columns(), "h")
    for index, (scaling, base) in enumerate(product(SCALINGS_BY_READS[reads], BASES)):
        segment, without_covariates = (1, 3, 2)[index % 3], index % 4 != 2
        fields: dict[str, Any] = {
            "name": "law",
            "context": 6,
            "horizon": 5,
            "min_history": (6, 3, 1)[index % 3],
            "season": 4,
            "reads": reads,
            "segment": segment,
            "decoder": decoder,
            "base": base,
            **scaling_fields(scaling),
            "lags": (6,) if index % 5 == 0 else (),
            "calendar": () if without_covariates else ("hour",),
            "covariates": () if without_covariates else ("heat",),
            "static": ("region",) if index % 2 else (),
            "channels": ("rain",) if index % 4 > 1 else (),
            "network": {"cell": cell, "hidden": 5, "layers": 2, "residual": True, "dilations": (1, 3)}
            if index % 3 == 0
            else {"cell": cell, "hidden": 5},
        }
        spec = Spec.parse(fields, where="law")
        encoding = fit_encoding(panel, calendar=spec.calendar, covariates=spec.covariates, static=spec.static)
        network = build_network(
            spec,
            seed=index,
            season=4,
            num_covariates=encoding.num_covariates,
            static_cardinalities=encoding.static_cardinalities,
        ).eval()
        generator = torch.Generator().manual_seed(index)
        for parameter in network.requires_grad_(False).parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        yield Predictor(FittedModel(spec, "h", 4, START, encoding, network))


def predict_each_origin(
    predictor: Predictor, series: Sequence[Series], remaining_steps: range, horizon: int
) -> np.ndarray:
    """Forecasts at every origin from the history before it, cut and sent like any other history."""
    forecasts = np.full((len(series), len(remaining_steps), horizon), np.nan)
    origins = [
        (row, index)
        for row, item in enumerate(series)
        for index, remaining in enumerate(remaining_steps)
        if len(item) > remaining
    ]
    histories = [series[row].take_first(len(series[row]) - remaining_steps[index]) for row, index in origins]
    for (row, index), outcome in zip(origins, predictor.forecast_batch(histories, horizon), strict=True):
        if isinstance(outcome, Forecast):
            forecasts[row, index] = outcome.mean
    return forecasts


def assert_close(actual: np.ndarray, expected: np.ndarray, series: Sequence[Series]) -> None:
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected))
    for item, actual_row, expected_row in zip(series, actual, expected, strict=True):
        scale = max(np.nanmax(np.abs(item.y)), np.nanmax(np.abs(expected_row), initial=0.0))
        np.testing.assert_allclose(actual_row, expected_row, rtol=0, atol=TOLERANCE * scale)


@every_kind
def test_predicting_all_origins_at_once_equals_predicting_each_origin(reads: str, cell: str, decoder: str) -> None:
    series = make_panel_with_columns()
    for index, predictor in enumerate(make_predictors(reads, cell, decoder)):
        horizon, stride, windows = (5, 3, 8)[index % 3], (1, 2, 5)[index % 3], (24, 9, 6)[index % 3]
        forecasts = forecast_all_origins(predictor, series, horizon=horizon, windows=windows, stride=stride)
        remaining_steps = rolling_origins(windows=windows, horizon=horizon, stride=stride)
        assert_close(forecasts, predict_each_origin(predictor, series, remaining_steps, horizon), series)
        assert np.isfinite(forecasts).any(axis=(1, 2)).tolist()[:4] == [True] * 4


@every_kind
def test_values_after_an_origin_do_not_change_its_forecast(reads: str, cell: str, decoder: str) -> None:
    y, windows, horizon = make_wave(24), 16, 3
    for predictor in list(make_predictors(reads, cell, decoder))[1::4]:  # those that read y only
        expected = forecast_all_origins(predictor, [make_series(y)], horizon=horizon, windows=windows, stride=1)[0]
        assert np.isfinite(expected).all()
        for index in range(0, windows - 1, 4):
            cutoff = len(y) - horizon - windows + 1 + index
            changed_history = y.copy()
            changed_history[cutoff:] = SENTINEL * np.random.default_rng(5).normal(size=len(y) - cutoff)
            changed = forecast_all_origins(
                predictor, [make_series(changed_history)], horizon=horizon, windows=windows, stride=1
            )[0]
            np.testing.assert_allclose(changed[: index + 1], expected[: index + 1], rtol=0, atol=TOLERANCE * y.max())
            assert not np.allclose(changed[index + 1], expected[index + 1], rtol=1e-3)


@pytest.mark.parametrize("cell", ["gru", "lstm", "elman"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("count", "stride"), [(1, 4), (2, 2), (7, 2), (40, 1), (41, 1)])
def test_the_state_at_an_index_equals_reading_up_to_it(
    cell: str, rows: int, count: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forecaster.model.rollout_origins.MAX_STATES_AT_ONCE", 17 * rows)
    spec = make_spec(cell=cell, layers=2, scaling="level_season", reads="history", base="last", lags=(3,))
    network, generator = make_fitted_model(spec).network, torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    values = torch.from_numpy(np.stack([make_wave(network.pre_context + 60, seed=row) for row in range(rows)]))
    values[:, : network.pre_context] = torch.nan
    forecasts = []
    for state in states_at_origins(network, Window(values), stride=stride, count=count):
        assert len(state.output) <= 18 * rows
        forecasts += roll_out(network, state, horizon=6)[0].unflatten(0, (-1, rows)).unbind()
    assert len(forecasts) == count
    for index, forecast in enumerate(forecasts):
        history = Window(values[:, : values.shape[1] - (count - 1 - index) * stride])
        expected = roll_out(network, warm_up(network, history), horizon=6)[0]
        torch.testing.assert_close(forecast, expected, rtol=0, atol=1e-5)


def test_more_rows_than_the_limit_are_processed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    series = [make_series(make_wave(steps, seed=steps), name=str(steps)) for steps in (30, 18, 42, 25, 30)]
    for reads in SCALINGS_BY_READS:
        predictor = Predictor(make_fitted_model(make_spec(cell="lstm", reads=reads, segment=2)))
        expected = forecast_all_origins(predictor, series, horizon=3, windows=12, stride=1)
        with monkeypatch.context() as patch:
            patch.setattr("forecaster.prediction.length_batches.MAX_BATCH_ROWS", 2)
            patch.setattr("forecaster.prediction.length_batches.MAX_BATCH_VALUES", 60)
            patch.setattr("forecaster.evaluation.rolling_origins.MAX_BATCH_ROWS", 3)
            patch.setattr("forecaster.model.rollout.MAX_SEGMENTS_AT_ONCE", 5)
            actual = forecast_all_origins(predictor, series, horizon=3, windows=12, stride=1)
        assert_close(actual, expected, series)
        assert np.isfinite(expected).sum() > 100


@pytest.mark.parametrize("reads", SCALINGS_BY_READS)
def test_an_invalid_origin_has_no_forecast_and_affects_no_other(reads: str) -> None:
    predictor = Predictor(make_fitted_model(make_spec(reads=reads)))
    good, infinite = make_series(make_wave(40)), make_wave(40)
    infinite[30] = np.inf
    bad = [
        make_series(infinite),
        make_series(make_wave(40), freq="D"),
        make_series(np.full(40, np.nan)),
        make_series(make_wave(3)),
    ]
    forecasts = forecast_all_origins(predictor, [bad[0], good, *bad[1:]], horizon=4, windows=10, stride=1)
    assert np.isfinite(forecasts[0]).all(axis=1).tolist() == [True] * 4 + [False] * 6, "the history ends before step 30"
    assert np.isfinite(forecasts[1]).all()
    assert np.isnan(forecasts[2:]).all()
    assert_close(
        forecasts[:2],
        predict_each_origin(predictor, [bad[0], good], rolling_origins(windows=10, horizon=4, stride=1), 4),
        [good] * 2,
    )


@pytest.mark.parametrize("reads", SCALINGS_BY_READS)
def test_a_missing_covariate_removes_only_the_origins_that_need_it(reads: str) -> None:
    spec = make_spec(reads=reads, covariates=("heat",), context=6)
    heat = np.random.default_rng(1).normal(size=40)
    panel = Panel([Series("a", START, "h", make_wave(40), {"heat": heat})], "h")
    network = build_network(spec, seed=1, season=4, num_covariates=1).eval().requires_grad_(False)
    predictor = Predictor(
        FittedModel(spec, "h", 4, START, fit_encoding(panel, calendar=(), covariates=("heat",), static=()), network)
    )
    with_gap = heat.copy()
    with_gap[20] = np.nan
    series = [
        *panel.series,
        Series("b", START, "h", make_wave(40), {"heat": with_gap}),
        Series("c", START, "h", make_wave(40)),
    ]
    remaining_steps = rolling_origins(windows=30, horizon=4, stride=1)
    forecasts = forecast_all_origins(predictor, series, horizon=4, windows=30, stride=1)
    assert_close(forecasts[:2], predict_each_origin(predictor, series[:2], remaining_steps, 4), series[:2])
    assert np.isfinite(forecasts[0]).all()
    assert np.isnan(forecasts[2]).all()
    forecast_lengths = [
        len(series[1]) - remaining
        for remaining, row in zip(remaining_steps, forecasts[1], strict=True)
        if np.isfinite(row).all()
    ]
    assert forecast_lengths == [*range(7, 17), *(range(27, 37) if reads == "window" else ())]


@pytest.mark.parametrize("reads", SCALINGS_BY_READS)
def test_a_diverging_forecast_falls_back_to_seasonal_naive_at_its_origin_only(reads: str) -> None:
    model = make_fitted_model(make_spec(scaling="none", base="last", reads=reads))
    with torch.no_grad():  # every step is 5000 above the previous one
        model.network.output.weight.zero_()
        model.network.output.bias.fill_(5e3)
    predictor, y = Predictor(model), make_wave(60)
    y[30] = 50.0  # raises the divergence bound of all histories that contain it
    forecasts = forecast_all_origins(predictor, [make_series(y)], horizon=6, windows=12, stride=3)
    remaining_steps = rolling_origins(windows=12, horizon=6, stride=3)
    assert_close(forecasts, predict_each_origin(predictor, [make_series(y)], remaining_steps, 6), [make_series(y)])
    uses_network = [forecasts[0, index, -1] > 1e4 for index in range(12)]
    contains_large_value = [30 < 60 - remaining <= (46 if reads == "window" else 60) for remaining in remaining_steps]
    assert uses_network == contains_large_value
    assert forecasts[0, 0, 5] == y[60 - remaining_steps[0] - 3]


def test_no_origins_or_series_give_an_empty_result_and_a_zero_horizon_is_rejected() -> None:
    predictor = Predictor(make_fitted_model(make_spec()))
    assert forecast_all_origins(predictor, [], horizon=3, windows=2).shape == (0, 2, 3)
    assert forecast_all_origins(predictor, [make_series(make_wave(20))], horizon=3, windows=0).shape == (1, 0, 3)
    with pytest.raises(HorizonOutOfRange, match="at least 1 step; found 0"):
        forecast_all_origins(predictor, [make_series(make_wave(20))], horizon=0, windows=2)
