"""What is known ahead and what a series is: learned from, answered with, missed where it is not sent, kept in the bundle."""

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
from forecaster.series import Forecast, Panel, Series
from forecaster.spec import Spec
from forecaster.training.fit import fit
from tests.factories import START, make_spec, make_wave

DECODERS = pytest.mark.parametrize("decoder", ["rollout", "direct"])
FUTURE_STEPS = 9  # steps after the history for which covariates are known
SKY_CATEGORIES = ("hail", "rain", "sun")


def make_series_with_covariates(
    *, name: str = "a", steps: int = 24, ahead: int = FUTURE_STEPS, seed: int = 0, region: str = "north"
) -> Series:
    draw = np.random.default_rng(seed)
    heat = 20 + 5 * draw.normal(size=steps + ahead)
    sky = draw.choice(np.array(SKY_CATEGORIES, dtype=object), size=steps + ahead)
    return Series(name, START, "h", make_wave(steps, seed=seed), {"heat": heat, "sky": sky}, {"region": region})


def change_covariate(series: Series, name: str, steps: slice) -> Series:
    """The series with other values of a covariate."""
    values = series.covariates[name].copy()
    values[steps] = (
        values[steps] + 7
        if name == "heat"
        else [SKY_CATEGORIES[SKY_CATEGORIES.index(one) - 1] for one in values[steps]]
    )
    return replace(series, covariates={**series.covariates, name: values})


def make_model(decoder: str, **fields: Any) -> FittedModel:
    """Random weights, and an encoding learned from two series."""
    whole = {"covariates": ("heat", "sky"), "static": ("region",), "calendar": ("hour", "weekday")} | fields
    spec = make_spec(decoder=decoder, segment=2, **whole)
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


# Answering


@DECODERS
@pytest.mark.parametrize("name", ["heat", "sky"])
def test_a_forecast_depends_on_a_covariate_from_its_segment_on(decoder: str, name: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_covariates()
    plain = predictor.forecast(series, 5).mean
    other = predictor.forecast(change_covariate(series, name, slice(24 + 2, 24 + 3)), 5).mean
    assert np.array_equal(other[:2], plain[:2])
    assert (np.abs(other - plain)[2:4] > 1e-4).all()
    assert (np.abs(predictor.forecast(change_covariate(series, name, slice(12, 20)), 5).mean - plain) > 1e-6).all()


@DECODERS
@pytest.mark.parametrize("name", ["heat", "sky"])
def test_a_forecast_does_not_change_with_covariates_beyond_its_last_segment(decoder: str, name: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_covariates()
    plain = predictor.forecast(series, 3).mean  # segments of two steps: the fourth is the last
    assert np.array_equal(predictor.forecast(change_covariate(series, name, slice(24 + 4, None)), 3).mean, plain)
    assert not np.array_equal(predictor.forecast(change_covariate(series, name, slice(24 + 2, None)), 3).mean, plain)


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
    bare = replace(
        make_series_with_covariates(name="bare"), covariates={"heat": make_series_with_covariates().covariates["heat"]}
    )
    none = replace(make_series_with_covariates(name="none"), covariates={})
    one, first, second, third, other = predictor.forecast_batch([good[0], short, bare, none, good[1]], 5)
    for mean, series in ((one, good[0]), (other, good[1])):
        assert np.allclose(mean_forecast(mean), predictor.forecast(series, 5).mean, rtol=1e-5)
    for outcome, series, part in (
        (first, short, "known for 4 steps ahead"),
        (second, bare, "sky not found"),
        (third, none, "heat, sky not found"),
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
    odd = replace(
        make_series_with_covariates(name="odd"), covariates={**make_series_with_covariates().covariates, "heat": heat}
    )
    bad, good = predictor.forecast_batch([odd, make_series_with_covariates()], 5)
    assert isinstance(bad, NotANumber)
    assert bad.where == "odd"
    assert "'heat'" in bad.message
    assert isinstance(good, Forecast)


@DECODERS
def test_unused_covariates_need_not_be_numeric(decoder: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_covariates()
    heat = series.covariates["heat"].copy()
    heat[[0, -1]] = np.nan
    odd = replace(series, covariates={**series.covariates, "heat": heat})
    assert np.array_equal(predictor.forecast(odd, 5).mean, predictor.forecast(series, 5).mean)


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
    forecaster = make_model("rollout")
    known = Predictor(forecaster)._inputs.build(
        [make_series_with_covariates(region="west"), make_series_with_covariates(region="north")], 5
    )
    assert known.static is not None
    assert known.static.tolist() == [[0], [1]]
    west, north = forecaster.network.embed_static(torch.from_numpy(known.static), rows=2)
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
    [plain] = predictor.sample_batch([series], 5, paths=3, seed=0)
    [other] = predictor.sample_batch([change_covariate(series, "heat", slice(24 + 2, None))], 5, paths=3, seed=0)
    assert isinstance(plain, np.ndarray)
    assert isinstance(other, np.ndarray)
    assert np.array_equal(plain[:, :2], other[:, :2])
    assert not np.isclose(plain[:, 2:], other[:, 2:]).any()


# Keeping


@DECODERS
@pytest.mark.parametrize("region", ["south", "west"])
def test_a_bundle_round_trip_is_bitwise_equal(decoder: str, region: str, tmp_path: Path) -> None:
    forecaster, series = make_model(decoder), make_series_with_covariates(region=region, seed=3)
    artifact.save_bundle(forecaster, tmp_path / "bundle", card="")
    again = artifact.load_bundle(tmp_path / "bundle")
    assert again.encoding == forecaster.encoding
    assert again.spec == forecaster.spec
    assert np.array_equal(Predictor(again).forecast(series, 7).mean, Predictor(forecaster).forecast(series, 7).mean)


def test_a_column_missing_in_every_series_has_width_zero_and_can_be_saved(tmp_path: Path) -> None:
    spec = make_spec(static=("region",))
    panel = Panel([replace(make_series_with_covariates(), covariates={}, static={})], "h")
    encoding = fit_encoding(panel, calendar=(), covariates=(), static=("region",))
    network = build_network(spec, seed=1, num_covariates=0, static_cardinalities=encoding.static_cardinalities).eval()
    artifact.save_bundle(FittedModel(spec, "h", 4, START, encoding, network), tmp_path / "bundle", card="")
    assert np.isfinite(
        Predictor(artifact.load_bundle(tmp_path / "bundle")).forecast(make_series_with_covariates(), 5).mean
    ).all()


# Learning

HORIZON, WINDOWS = 4, 10


def make_driven_series() -> Series:
    """Every value is that of a covariate at the same step, and a little noise: nothing else foretells it."""
    draw = np.random.default_rng(0)
    drive = draw.normal(size=640)
    y = 10 + 2 * drive[:600] + 0.1 * draw.normal(size=600)
    return Series("a", START, "h", y, {"drive": drive})


def mean_error(series: Series, decoder: str, *, covariates: tuple[str, ...]) -> float:
    """Mean absolute error over the last origins of a tiny network that was trained before them."""
    spec = make_spec(
        decoder=decoder,
        context=8,
        horizon=HORIZON,
        covariates=covariates,
        training={"steps": 150, "epoch_steps": 50, "batch": 32, "learning_rate": 0.03},
    )
    panel = Panel([series], "h")
    known = Panel([series.take_first(len(series) - WINDOWS * HORIZON)], "h")
    ask = Predictor(fit(known, spec, accelerator="cpu").model).forecast_batch
    return backtest(panel, {"network": ask}, horizon=HORIZON, windows=WINDOWS, season=1).scores("network")["mae"]


@DECODERS
def test_a_predictive_covariate_is_learned_and_a_shuffled_one_is_not(decoder: str) -> None:
    series = make_driven_series()
    drive = np.random.default_rng(1).permutation(series.covariates["drive"])
    without = mean_error(series, decoder, covariates=())
    told_truth = mean_error(series, decoder, covariates=("drive",))
    shuffled = mean_error(replace(series, covariates={"drive": drive}), decoder, covariates=("drive",))
    assert told_truth < 0.4 * without
    assert shuffled > 0.9 * without


def test_groups_are_distinguished_by_their_static_category() -> None:
    """One value of history tells nothing of the group: one goes on from it, the other turns back."""
    draw, series = np.random.default_rng(0), []
    for number, (group, slope) in enumerate([("on", 0.9), ("back", -0.9)] * 2):
        y = np.zeros(300)
        for step in range(1, 300):
            y[step] = slope * y[step - 1] + 0.5 * draw.normal()
        series.append(Series(f"{group} {number}", START, "h", y, static={"group": group}))
    network = {"hidden": 8}
    training = {"steps": 300, "epoch_steps": 50, "batch": 64, "learning_rate": 0.02, "valid_windows": 20}
    fields = {"name": "groups", "context": 1, "horizon": 1, "season": 1, "scaling": "none", "static": ("group",)}
    spec = Spec.parse(fields | {"network": network, "training": training}, where="a test")
    forecaster = fit(Panel(series, "h"), spec, accelerator="cpu").model
    assert forecaster.encoding.static == {"group": ("back", "on")}
    assert not forecaster.network.groups[0].weight[0].any(), "an unknown group adds nothing, after training too"
    asks = [Series(group, START, "h", np.array([1.0]), static={"group": group}) for group in ("on", "back", "new")]
    on, back, new = (float(mean_forecast(outcome)[0]) for outcome in Predictor(forecaster).forecast_batch(asks, 1))
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
        replace(one, covariates={name: np.append(values, values[:9]) for name, values in one.covariates.items()})
        for one in series
    ]
    spec = make_spec(
        decoder=decoder,
        covariates=("heat", "sky"),
        static=("region",),
        calendar=("hour",),
        training={"steps": 4, "epoch_steps": 2, "batch": 8},
    )
    fits = [fit(Panel(some, "h"), spec, accelerator="cpu").model for some in (series, longer)]
    assert fits[0].encoding == fits[1].encoding
    states = [one.network.state_dict() for one in fits]
    assert all(bool((states[0][name] == states[1][name]).all()) for name in states[0])


def test_a_fit_names_a_missing_column() -> None:
    spec = make_spec(covariates=("heat", "wind"))
    with pytest.raises(CovariateUnknown, match="Series 'a' needs the covariate 'wind'; it has: heat, sky"):
        fit(Panel([make_series_with_covariates(steps=60)], "h"), spec)
