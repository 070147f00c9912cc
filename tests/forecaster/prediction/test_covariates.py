"""What is known ahead and what a series is: learned from, answered with, missed where it is not sent, kept in the bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.bundle import artifact
from forecaster.data.encoding import learn
from forecaster.errors import CovariateUnknown, ForecasterError, NotANumber
from forecaster.evaluation.backtest import backtest
from forecaster.model.regressor import build
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Forecast, Panel, Series
from forecaster.spec import Spec
from forecaster.training.fit import fit
from tests.factories import START, make_spec, wave

DECODERS = pytest.mark.parametrize("decoder", ["rollout", "direct"])
AHEAD = 9  # steps after the history for which covariates are known
SKIES = ("hail", "rain", "sun")


def told(*, name: str = "a", steps: int = 24, ahead: int = AHEAD, seed: int = 0, region: str = "north") -> Series:
    draw = np.random.default_rng(seed)
    heat = 20 + 5 * draw.normal(size=steps + ahead)
    sky = draw.choice(np.array(SKIES, dtype=object), size=steps + ahead)
    return Series(name, START, "h", wave(steps, seed=seed), {"heat": heat, "sky": sky}, {"region": region})


def changed(series: Series, name: str, steps: slice) -> Series:
    """The series with other values of a covariate."""
    values = series.covariates[name].copy()
    values[steps] = values[steps] + 7 if name == "heat" else [SKIES[SKIES.index(one) - 1] for one in values[steps]]
    return replace(series, covariates={**series.covariates, name: values})


def forecaster_of(decoder: str, **fields: Any) -> Forecaster:
    """Random weights, and an encoding learned from two series."""
    whole = {"covariates": ("heat", "sky"), "static": ("region",), "calendar": ("hour", "weekday")} | fields
    spec = make_spec(decoder=decoder, segment=2, **whole)
    panel = Panel([told(), told(name="b", seed=1, region="south")], "h")
    encoding = learn(panel, calendar=spec.calendar, covariates=spec.covariates, static=spec.static)
    network = build(spec, seed=1, covariates=encoding.width, groups=encoding.sizes).eval().requires_grad_(False)
    for weight in network.parameters():
        weight.mul_(1.5)
    return Forecaster(spec, "h", 4, START, encoding, network)


def mean_of(outcome: Forecast | ForecasterError) -> np.ndarray:
    assert isinstance(outcome, Forecast), outcome
    return outcome.mean


# Answering


@DECODERS
@pytest.mark.parametrize("name", ["heat", "sky"])
def test_a_forecast_changes_with_a_covariate_from_that_segment_on(decoder: str, name: str) -> None:
    predictor, series = Predictor(forecaster_of(decoder)), told()
    plain = predictor.forecast(series, 5).mean
    other = predictor.forecast(changed(series, name, slice(24 + 2, 24 + 3)), 5).mean
    assert np.array_equal(other[:2], plain[:2])
    assert (np.abs(other - plain)[2:4] > 1e-4).all()
    assert (np.abs(predictor.forecast(changed(series, name, slice(12, 20)), 5).mean - plain) > 1e-6).all()


@DECODERS
@pytest.mark.parametrize("name", ["heat", "sky"])
def test_a_forecast_does_not_change_with_covariates_beyond_its_last_segment(decoder: str, name: str) -> None:
    predictor, series = Predictor(forecaster_of(decoder)), told()
    plain = predictor.forecast(series, 3).mean  # segments of two steps: the fourth is the last
    assert np.array_equal(predictor.forecast(changed(series, name, slice(24 + 4, None)), 3).mean, plain)
    assert not np.array_equal(predictor.forecast(changed(series, name, slice(24 + 2, None)), 3).mean, plain)


@DECODERS
def test_a_forecast_does_not_change_with_covariates_before_its_context(decoder: str) -> None:
    predictor, series = Predictor(forecaster_of(decoder)), told()
    assert np.array_equal(
        predictor.forecast(changed(series, "heat", slice(0, 24 - 16)), 5).mean, predictor.forecast(series, 5).mean
    )


@DECODERS
def test_what_is_missing_of_one_series_is_told_of_it_alone(decoder: str) -> None:
    predictor, good = Predictor(forecaster_of(decoder)), [told(), told(name="b", seed=1)]
    short = replace(told(name="short", ahead=4), static={})
    bare = replace(told(name="bare"), covariates={"heat": told().covariates["heat"]})
    none = replace(told(name="none"), covariates={})
    one, first, second, third, other = predictor.forecast_each([good[0], short, bare, none, good[1]], 5)
    for mean, series in ((one, good[0]), (other, good[1])):
        assert np.allclose(mean_of(mean), predictor.forecast(series, 5).mean, rtol=1e-5)
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
    assert isinstance(predictor.forecast_each([short], 4)[0], Forecast)


@DECODERS
@pytest.mark.parametrize("value", ["warm", np.nan, np.inf])
@pytest.mark.parametrize("step", [12, 24 + 4])
def test_a_covariate_that_is_no_number_is_told_of_its_series_alone(decoder: str, value: Any, step: int) -> None:
    predictor = Predictor(forecaster_of(decoder))
    heat = told().covariates["heat"].astype(object if isinstance(value, str) else np.float64)
    heat[step] = value
    odd = replace(told(name="odd"), covariates={**told().covariates, "heat": heat})
    bad, good = predictor.forecast_each([odd, told()], 5)
    assert isinstance(bad, NotANumber)
    assert bad.where == "odd"
    assert "'heat'" in bad.message
    assert isinstance(good, Forecast)


@DECODERS
def test_covariates_that_no_forecast_reads_need_not_be_numbers(decoder: str) -> None:
    predictor, series = Predictor(forecaster_of(decoder)), told()
    heat = series.covariates["heat"].copy()
    heat[[0, -1]] = np.nan
    odd = replace(series, covariates={**series.covariates, "heat": heat})
    assert np.array_equal(predictor.forecast(odd, 5).mean, predictor.forecast(series, 5).mean)


@DECODERS
def test_an_unknown_category_is_answered_as_none(decoder: str) -> None:
    predictor = Predictor(forecaster_of(decoder))
    north, south, west = (predictor.forecast(told(region=region), 5).mean for region in ("north", "south", "west"))
    none = predictor.forecast(replace(told(), static={}), 5).mean
    assert np.array_equal(west, none)
    assert not np.isclose(north, south).any()
    assert not np.isclose(north, west).any()
    assert np.isfinite(west).all()


def test_an_unknown_static_category_adds_nothing_to_what_the_network_reads() -> None:
    forecaster = forecaster_of("rollout")
    known = Predictor(forecaster)._ready([told(region="west"), told(region="north")], 5)
    assert known.static is not None
    assert known.static.tolist() == [[0], [1]]
    west, north = forecaster.network.describe(torch.from_numpy(known.static), rows=2)
    assert not west.any()
    assert north.all()


@DECODERS
def test_a_forecast_with_the_calendar_alone_depends_on_the_zone(decoder: str) -> None:
    predictor = Predictor(forecaster_of(decoder, covariates=(), static=()))
    start = START.tz_localize("UTC")
    means = [
        predictor.forecast(Series("a", start.tz_convert(zone), "h", wave(24)), 5).mean for zone in ("UTC", "Asia/Tokyo")
    ]
    assert not np.isclose(*means).any()


@DECODERS
def test_paths_are_drawn_with_the_covariates(decoder: str) -> None:
    predictor, series = Predictor(forecaster_of(decoder, head={"kind": "gaussian"})), told()
    [plain] = predictor.sample_each([series], 5, paths=3, seed=0)
    [other] = predictor.sample_each([changed(series, "heat", slice(24 + 2, None))], 5, paths=3, seed=0)
    assert isinstance(plain, np.ndarray)
    assert isinstance(other, np.ndarray)
    assert np.array_equal(plain[:, :2], other[:, :2])
    assert not np.isclose(plain[:, 2:], other[:, 2:]).any()


# Keeping


@DECODERS
@pytest.mark.parametrize("region", ["south", "west"])
def test_a_bundle_keeps_all_of_it_bitwise(decoder: str, region: str, tmp_path: Path) -> None:
    forecaster, series = forecaster_of(decoder), told(region=region, seed=3)
    artifact.save(forecaster, tmp_path / "bundle", card="")
    again = artifact.load(tmp_path / "bundle")
    assert again.encoding == forecaster.encoding
    assert again.spec == forecaster.spec
    assert np.array_equal(Predictor(again).forecast(series, 7).mean, Predictor(forecaster).forecast(series, 7).mean)


def test_a_column_that_no_series_has_leaves_room_for_nothing_but_can_be_kept(tmp_path: Path) -> None:
    spec = make_spec(static=("region",))
    panel = Panel([replace(told(), covariates={}, static={})], "h")
    encoding = learn(panel, calendar=(), covariates=(), static=("region",))
    network = build(spec, seed=1, covariates=0, groups=encoding.sizes).eval()
    artifact.save(Forecaster(spec, "h", 4, START, encoding, network), tmp_path / "bundle", card="")
    assert np.isfinite(Predictor(artifact.load(tmp_path / "bundle")).forecast(told(), 5).mean).all()


# Learning

HORIZON, WINDOWS = 4, 10


def driven() -> Series:
    """Every value is that of a covariate at the same step, and a little noise: nothing else foretells it."""
    draw = np.random.default_rng(0)
    drive = draw.normal(size=640)
    y = 10 + 2 * drive[:600] + 0.1 * draw.normal(size=600)
    return Series("a", START, "h", y, {"drive": drive})


def error_of(series: Series, decoder: str, *, covariates: tuple[str, ...]) -> float:
    """Mean absolute error over the last origins of a tiny network that was trained before them."""
    spec = make_spec(
        decoder=decoder,
        context=8,
        horizon=HORIZON,
        covariates=covariates,
        training={"steps": 150, "epoch_steps": 50, "batch": 32, "learning_rate": 0.03},
    )
    panel = Panel([series], "h")
    known = Panel([series.until(len(series) - WINDOWS * HORIZON)], "h")
    ask = Predictor(fit(known, spec, accelerator="cpu").forecaster).forecast_each
    return backtest(panel, {"network": ask}, horizon=HORIZON, windows=WINDOWS, season=1).scores("network")["mae"]


@DECODERS
def test_a_true_covariate_is_learned_from_and_a_shuffled_one_is_not(decoder: str) -> None:
    series = driven()
    drive = np.random.default_rng(1).permutation(series.covariates["drive"])
    without = error_of(series, decoder, covariates=())
    told_truth = error_of(series, decoder, covariates=("drive",))
    shuffled = error_of(replace(series, covariates={"drive": drive}), decoder, covariates=("drive",))
    assert told_truth < 0.4 * without
    assert shuffled > 0.9 * without


def test_groups_are_told_apart_by_their_static_category() -> None:
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
    forecaster = fit(Panel(series, "h"), spec, accelerator="cpu").forecaster
    assert forecaster.encoding.static == {"group": ("back", "on")}
    assert not forecaster.network.groups[0].weight[0].any(), "an unknown group adds nothing, after training too"
    asks = [Series(group, START, "h", np.array([1.0]), static={"group": group}) for group in ("on", "back", "new")]
    on, back, new = (float(mean_of(outcome)[0]) for outcome in Predictor(forecaster).forecast_each(asks, 1))
    assert on == pytest.approx(0.9, abs=0.3)
    assert back == pytest.approx(-0.9, abs=0.3)
    assert np.isfinite(new)


@DECODERS
def test_a_fit_learns_nothing_from_covariates_after_its_panel(decoder: str) -> None:
    series = [told(steps=60, ahead=0), told(name="b", steps=50, ahead=0, seed=1, region="south")]
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
    fits = [fit(Panel(some, "h"), spec, accelerator="cpu").forecaster for some in (series, longer)]
    assert fits[0].encoding == fits[1].encoding
    states = [one.network.state_dict() for one in fits]
    assert all(bool((states[0][name] == states[1][name]).all()) for name in states[0])


def test_a_fit_without_a_column_says_which() -> None:
    spec = make_spec(covariates=("heat", "wind"))
    with pytest.raises(CovariateUnknown, match="Series 'a' needs the covariate 'wind'; it has: heat, sky"):
        fit(Panel([told(steps=60)], "h"), spec)
