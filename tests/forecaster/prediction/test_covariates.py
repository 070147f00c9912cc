"""Tests of covariates, calendar features and static features: prediction, validation, bundles and training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.bundle import artifact
from forecaster.data.encoding import fit_encoding
from forecaster.errors import CovariateUnknown, ForecasterError, NotANumber
from forecaster.evaluation.backtest import backtest
from forecaster.model.regressor import build_network
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.prediction.rollout_input import RolloutInputBuilder
from forecaster.series import Forecast, Panel, Series
from forecaster.spec import Spec
from forecaster.training.fit import fit
from tests.factories import START, make_spec, make_wave

pytestmark = pytest.mark.integration

DECODERS = pytest.mark.parametrize("decoder", ["rollout", "direct"])
FUTURE_STEPS = 9  # future steps with covariates
SKY_CATEGORIES = ("hail", "rain", "sun")


def make_series_with_covariates(
    *, name: str = "a", steps: int = 24, ahead: int = FUTURE_STEPS, seed: int = 0, region: str = "north"
) -> Series:
    rng = np.random.default_rng(seed)
    heat = 20 + 5 * rng.normal(size=steps + ahead)
    sky = rng.choice(np.array(SKY_CATEGORIES, dtype=object), size=steps + ahead)
    return Series(name, START, "h", make_wave(steps, seed=seed), {"heat": heat, "sky": sky}, {"region": region})


def change_covariate(series: Series, name: str, steps: slice) -> Series:
    """Returns the series with changed values of a covariate."""
    values = series.covariates[name].copy()
    values[steps] = (
        values[steps] + 7
        if name == "heat"
        else [SKY_CATEGORIES[SKY_CATEGORIES.index(category) - 1] for category in values[steps]]
    )
    return replace(series, covariates={**series.covariates, name: values})


def make_model(decoder: str, **fields: Any) -> FittedModel:
    """Builds a model with random weights, and an encoding fitted to two series."""
    columns = {"covariates": ("heat", "sky"), "static": ("region",), "calendar": ("hour", "weekday")} | fields
    spec = make_spec(decoder=decoder, segment=2, **columns)
    panel = Panel([make_series_with_covariates(), make_series_with_covariates(name="b", seed=1, region="south")], "h")
    encoding = fit_encoding(panel, calendar=spec.calendar, covariates=spec.covariates, static=spec.static)
    network = (
        build_network(
            spec, seed=1, num_covariates=encoding.num_covariates, static_cardinalities=encoding.static_cardinalities
        )
        .eval()
        .requires_grad_(False)
    )
    for weight in network.parameters():
        weight.mul_(1.5)
    return FittedModel(spec, "h", 4, START, encoding, network)


def mean_forecast(outcome: Forecast | ForecasterError) -> np.ndarray:
    assert isinstance(outcome, Forecast), outcome
    return outcome.mean


# Prediction


@DECODERS
@pytest.mark.parametrize("name", ["heat", "sky"])
def test_a_forecast_depends_on_a_covariate_from_its_segment_on(decoder: str, name: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_covariates()
    mean = predictor.forecast(series, 5).mean
    changed_mean = predictor.forecast(change_covariate(series, name, slice(24 + 2, 24 + 3)), 5).mean
    assert np.array_equal(changed_mean[:2], mean[:2])
    assert (np.abs(changed_mean - mean)[2:4] > 1e-4).all()
    assert (np.abs(predictor.forecast(change_covariate(series, name, slice(12, 20)), 5).mean - mean) > 1e-6).all()


@DECODERS
@pytest.mark.parametrize("name", ["heat", "sky"])
def test_a_forecast_does_not_change_with_covariates_beyond_its_last_segment(decoder: str, name: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_covariates()
    mean = predictor.forecast(series, 3).mean  # segments of two steps: the fourth is the last
    assert np.array_equal(predictor.forecast(change_covariate(series, name, slice(24 + 4, None)), 3).mean, mean)
    assert not np.array_equal(predictor.forecast(change_covariate(series, name, slice(24 + 2, None)), 3).mean, mean)


@DECODERS
def test_a_forecast_does_not_change_with_covariates_before_its_context(decoder: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_covariates()
    assert np.array_equal(
        predictor.forecast(change_covariate(series, "heat", slice(0, 24 - 16)), 5).mean,
        predictor.forecast(series, 5).mean,
    )


@DECODERS
def test_missing_covariates_of_one_series_are_reported_for_that_series_only(decoder: str) -> None:
    predictor, good = (
        Predictor(make_model(decoder)),
        [make_series_with_covariates(), make_series_with_covariates(name="b", seed=1)],
    )
    short = replace(make_series_with_covariates(name="short", ahead=4), static={})
    partial = replace(
        make_series_with_covariates(name="partial"),
        covariates={"heat": make_series_with_covariates().covariates["heat"]},
    )
    none = replace(make_series_with_covariates(name="none"), covariates={})
    outcomes = predictor.forecast_batch([good[0], short, partial, none, good[1]], 5)
    for outcome, series in ((outcomes[0], good[0]), (outcomes[4], good[1])):
        assert np.allclose(mean_forecast(outcome), predictor.forecast(series, 5).mean, rtol=1e-5)
    for outcome, series, part in (
        (outcomes[1], short, "known for 4 steps ahead"),
        (outcomes[2], partial, "sky not found"),
        (outcomes[3], none, "heat, sky not found"),
    ):
        assert isinstance(outcome, CovariateUnknown)
        assert outcome.where == series.id
        assert f"{series.id!r} needs the covariates heat, sky" in outcome.message
        assert "5 steps ahead" in outcome.message
        assert part in outcome.message
    assert isinstance(predictor.forecast_batch([short], 4)[0], Forecast)


@DECODERS
@pytest.mark.parametrize("value", ["warm", np.nan, np.inf])
@pytest.mark.parametrize("step", [12, 24 + 4])
def test_a_non_numeric_covariate_is_reported_for_its_series_only(decoder: str, value: Any, step: int) -> None:
    predictor = Predictor(make_model(decoder))
    heat = make_series_with_covariates().covariates["heat"].astype(object if isinstance(value, str) else np.float64)
    heat[step] = value
    invalid = replace(
        make_series_with_covariates(name="invalid"),
        covariates={**make_series_with_covariates().covariates, "heat": heat},
    )
    error, forecast = predictor.forecast_batch([invalid, make_series_with_covariates()], 5)
    assert isinstance(error, NotANumber)
    assert error.where == "invalid"
    assert "'heat'" in error.message
    assert isinstance(forecast, Forecast)


@DECODERS
def test_unused_covariates_need_not_be_numeric(decoder: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_covariates()
    heat = series.covariates["heat"].copy()
    heat[[0, -1]] = np.nan
    with_gaps = replace(series, covariates={**series.covariates, "heat": heat})
    assert np.array_equal(predictor.forecast(with_gaps, 5).mean, predictor.forecast(series, 5).mean)


@DECODERS
def test_an_unknown_category_is_encoded_as_no_category(decoder: str) -> None:
    predictor = Predictor(make_model(decoder))
    north, south, west = (
        predictor.forecast(make_series_with_covariates(region=region), 5).mean for region in ("north", "south", "west")
    )
    none = predictor.forecast(replace(make_series_with_covariates(), static={}), 5).mean
    assert np.array_equal(west, none)
    assert not np.isclose(north, south).any()
    assert not np.isclose(north, west).any()
    assert np.isfinite(west).all()


def test_an_unknown_static_category_contributes_nothing() -> None:
    fitted_model = make_model("rollout")
    inputs = RolloutInputBuilder(fitted_model).build(
        [make_series_with_covariates(region="west"), make_series_with_covariates(region="north")], 5
    )
    assert inputs.static is not None
    assert inputs.static.tolist() == [[0], [1]]
    west, north = fitted_model.network.embed_static(torch.from_numpy(inputs.static), rows=2)
    assert not west.any()
    assert north.all()


@DECODERS
def test_a_forecast_with_calendar_features_depends_on_the_time_zone(decoder: str) -> None:
    predictor = Predictor(make_model(decoder, covariates=(), static=()))
    start = START.tz_localize("UTC")
    means = [
        predictor.forecast(Series("a", start.tz_convert(zone), "h", make_wave(24)), 5).mean
        for zone in ("UTC", "Asia/Tokyo")
    ]
    assert not np.isclose(*means).any()


@DECODERS
def test_sample_paths_use_the_covariates(decoder: str) -> None:
    predictor, series = Predictor(make_model(decoder, head={"kind": "gaussian"})), make_series_with_covariates()
    [paths] = predictor.sample_batch([series], 5, paths=3, seed=0)
    [changed_paths] = predictor.sample_batch(
        [change_covariate(series, "heat", slice(24 + 2, None))], 5, paths=3, seed=0
    )
    assert isinstance(paths, np.ndarray)
    assert isinstance(changed_paths, np.ndarray)
    assert np.array_equal(paths[:, :2], changed_paths[:, :2])
    assert not np.isclose(paths[:, 2:], changed_paths[:, 2:]).any()


# Bundles


@DECODERS
@pytest.mark.parametrize("region", ["south", "west"])
def test_a_bundle_round_trip_is_bitwise_equal(decoder: str, region: str, tmp_path: Path) -> None:
    fitted_model, series = make_model(decoder), make_series_with_covariates(region=region, seed=3)
    artifact.save_bundle(fitted_model, tmp_path / "bundle", card="")
    loaded = artifact.load_bundle(tmp_path / "bundle")
    assert loaded.encoding == fitted_model.encoding
    assert loaded.spec == fitted_model.spec
    assert np.array_equal(Predictor(loaded).forecast(series, 7).mean, Predictor(fitted_model).forecast(series, 7).mean)


def test_a_column_missing_in_every_series_has_width_zero_and_can_be_saved(tmp_path: Path) -> None:
    spec = make_spec(static=("region",))
    panel = Panel([replace(make_series_with_covariates(), covariates={}, static={})], "h")
    encoding = fit_encoding(panel, calendar=(), covariates=(), static=("region",))
    network = build_network(spec, seed=1, num_covariates=0, static_cardinalities=encoding.static_cardinalities).eval()
    artifact.save_bundle(FittedModel(spec, "h", 4, START, encoding, network), tmp_path / "bundle", card="")
    assert np.isfinite(
        Predictor(artifact.load_bundle(tmp_path / "bundle")).forecast(make_series_with_covariates(), 5).mean
    ).all()


# Training

HORIZON, WINDOWS = 4, 10


def make_driven_series() -> Series:
    """Returns a series that follows a covariate of the same step, with a little noise. Nothing else predicts it."""
    rng = np.random.default_rng(0)
    drive = rng.normal(size=640)
    y = 10 + 2 * drive[:600] + 0.1 * rng.normal(size=600)
    return Series("a", START, "h", y, {"drive": drive})


def mean_error(series: Series, decoder: str, *, covariates: tuple[str, ...]) -> float:
    """Returns the mean absolute error of a tiny network over the last origins, after training on the earlier steps."""
    spec = make_spec(
        decoder=decoder,
        context=8,
        horizon=HORIZON,
        covariates=covariates,
        training={"steps": 150, "epoch_steps": 50, "batch": 32, "learning_rate": 0.03},
    )
    panel = Panel([series], "h")
    history = Panel([series.take_first(len(series) - WINDOWS * HORIZON)], "h")
    forecast_batch = Predictor(fit(history, spec, accelerator="cpu").model).forecast_batch
    return backtest(panel, {"network": forecast_batch}, horizon=HORIZON, windows=WINDOWS, season=1).scores("network")[
        "mae"
    ]


@DECODERS
def test_a_predictive_covariate_is_learned_and_a_shuffled_one_is_not(decoder: str) -> None:
    series = make_driven_series()
    drive = np.random.default_rng(1).permutation(series.covariates["drive"])
    without = mean_error(series, decoder, covariates=())
    predictive = mean_error(series, decoder, covariates=("drive",))
    shuffled = mean_error(replace(series, covariates={"drive": drive}), decoder, covariates=("drive",))
    assert predictive < 0.4 * without
    assert shuffled > 0.9 * without


def test_groups_are_distinguished_by_their_static_category() -> None:
    """A single value of history does not reveal the group: the coefficient is positive in one group, negative in the other."""
    rng, series = np.random.default_rng(0), []
    for index, (group, slope) in enumerate([("on", 0.9), ("back", -0.9)] * 2):
        y = np.zeros(300)
        for step in range(1, 300):
            y[step] = slope * y[step - 1] + 0.5 * rng.normal()
        series.append(Series(f"{group} {index}", START, "h", y, static={"group": group}))
    network = {"hidden": 8}
    training = {"steps": 300, "epoch_steps": 50, "batch": 64, "learning_rate": 0.02, "valid_windows": 20}
    fields = {"name": "groups", "context": 1, "horizon": 1, "season": 1, "scaling": "none", "static": ("group",)}
    spec = Spec.parse(fields | {"network": network, "training": training}, where="a test")
    fitted_model = fit(Panel(series, "h"), spec, accelerator="cpu").model
    assert fitted_model.encoding.static == {"group": ("back", "on")}
    assert not fitted_model.network.groups[0].weight[0].any(), (
        "an unknown group contributes nothing, after training too"
    )
    requests = [Series(group, START, "h", np.array([1.0]), static={"group": group}) for group in ("on", "back", "new")]
    on, back, new = (
        float(mean_forecast(outcome)[0]) for outcome in Predictor(fitted_model).forecast_batch(requests, 1)
    )
    assert on == pytest.approx(0.9, abs=0.3)
    assert back == pytest.approx(-0.9, abs=0.3)
    assert np.isfinite(new)


@DECODERS
def test_a_fit_does_not_use_covariates_after_its_panel(decoder: str) -> None:
    series = [
        make_series_with_covariates(steps=60, ahead=0),
        make_series_with_covariates(name="b", steps=50, ahead=0, seed=1, region="south"),
    ]
    longer = [
        replace(item, covariates={name: np.append(values, values[:9]) for name, values in item.covariates.items()})
        for item in series
    ]
    spec = make_spec(
        decoder=decoder,
        covariates=("heat", "sky"),
        static=("region",),
        calendar=("hour",),
        training={"steps": 4, "epoch_steps": 2, "batch": 8},
    )
    fitted_models = [fit(Panel(items, "h"), spec, accelerator="cpu").model for items in (series, longer)]
    assert fitted_models[0].encoding == fitted_models[1].encoding
    states = [fitted_model.network.state_dict() for fitted_model in fitted_models]
    assert all(bool((states[0][name] == states[1][name]).all()) for name in states[0])


def test_a_fit_names_a_missing_column() -> None:
    spec = make_spec(covariates=("heat", "wind"))
    with pytest.raises(CovariateUnknown, match="Series 'a' needs the covariate 'wind'; it has: heat, sky"):
        fit(Panel([make_series_with_covariates(steps=60)], "h"), spec)
