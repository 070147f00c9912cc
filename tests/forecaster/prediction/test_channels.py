"""Tests of channels (past-only columns): training, feedback, validation, scoring and bundles."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forecaster.bundle import artifact
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.data.split import hold_out
from forecaster.data.windows import CutoffIndex, PanelTensor, Window
from forecaster.errors import BadSpec, CovariateUnknown, NotANumber, ValueOutOfRange
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.calibration import calibrate_model
from forecaster.evaluation.validation import build_validation_batches, score_batch
from forecaster.model.rollout import start_rollout, warm_up
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Panel, Series
from forecaster.training.datamodule import WindowDataModule
from forecaster.training.fit import fit
from tests.factories import START, make_fitted_model, make_network, make_spec, make_wave

pytestmark = pytest.mark.integration

DECODERS = pytest.mark.parametrize("decoder", ["rollout", "direct"])
CHANNELS = ("heat", "rain")
HUGE_VALUE = 1e9  # far outside the data


def make_series_with_channels(*, name: str = "a", steps: int = 24, seed: int = 0) -> Series:
    """Returns a series with two channels, one of which has a gap."""
    heat, rain = 20 * make_wave(steps, seed=seed + 1), make_wave(steps, seed=seed + 2)
    rain[steps - 5] = np.nan
    return Series(name, START, "h", make_wave(steps, seed=seed), channels={"heat": heat, "rain": rain})


def change_channel(series: Series, name: str, steps: slice, by: float = 7.0) -> Series:
    """Returns the series with changed values of a channel."""
    values = series.channels[name].copy()
    values[steps] = values[steps] + by * np.random.default_rng(5).normal(size=len(values[steps]))
    return replace(series, channels={**series.channels, name: values})


def make_model(decoder: str = "rollout", **fields: Any) -> FittedModel:
    return make_fitted_model(make_spec(decoder=decoder, segment=2, **({"channels": CHANNELS} | fields)))


# Series


def test_a_cut_history_has_no_channel_values_after_the_cut() -> None:
    series = make_series_with_channels()
    history = series.take_first(10)
    for name, values in series.channels.items():
        np.testing.assert_array_equal(history.channels[name], values[:10])
    split = hold_out(Panel([series], "h"), 4)
    assert {len(values) for values in split.history.series[0].channels.values()} == {20}
    assert {len(values) for values in split.full.series[0].channels.values()} == {24}


def test_a_channel_ends_with_the_history() -> None:
    for steps in (23, 25):
        with pytest.raises((AssertionError, TypeError)):  # with jaxtyping, shapes are checked first
            replace(make_series_with_channels(), channels={"heat": make_wave(steps)})


def test_the_panel_digest_depends_on_its_channels() -> None:
    series, values = make_series_with_channels(), make_wave(24)
    variants = [
        series,
        change_channel(series, "rain", slice(0, 1)),
        replace(series, channels={"heat": series.channels["heat"]}),
        replace(series, channels={"heat": series.channels["rain"], "rain": series.channels["heat"]}),
        replace(series, channels={}),
        replace(series, channels={"x": values}),
        replace(series, channels={}, covariates={"x": values}),
    ]
    assert len({Panel([variant], "h").digest for variant in variants}) == len(variants)


# Prediction


@DECODERS
@pytest.mark.parametrize("name", CHANNELS)
def test_a_forecast_depends_on_every_channel_within_its_context_only(decoder: str, name: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_channels()
    mean = predictor.forecast(series, 5).mean
    assert (np.abs(predictor.forecast(change_channel(series, name, slice(12, 18)), 5).mean - mean) > 1e-6).all()
    assert np.array_equal(predictor.forecast(change_channel(series, name, slice(0, 24 - 16)), 5).mean, mean)


@DECODERS
def test_channels_are_matched_by_name_and_others_are_ignored(decoder: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_channels()
    reordered = dict(reversed(series.channels.items())) | {"other": np.full(24, np.inf)}
    assert np.array_equal(
        predictor.forecast(replace(series, channels=reordered), 5).mean, predictor.forecast(series, 5).mean
    )


@DECODERS
def test_a_bad_channel_of_one_series_is_reported_for_that_series_only(decoder: str) -> None:
    predictor, good = Predictor(make_model(decoder)), make_series_with_channels()
    partial = replace(
        make_series_with_channels(name="partial"), channels={"heat": make_series_with_channels().channels["heat"]}
    )
    none = replace(make_series_with_channels(name="none"), channels={})
    infinite = change_channel(make_series_with_channels(name="infinite"), "rain", slice(3, 4), by=np.inf)
    large = change_channel(make_series_with_channels(name="large"), "heat", slice(3, 4), by=1e200)
    first, *errors, last = predictor.forecast_batch([good, partial, none, infinite, large, good], 5)
    for outcome in (first, last):
        assert isinstance(outcome, Forecast)
        np.testing.assert_allclose(outcome.mean, predictor.forecast(good, 5).mean, rtol=1e-5)
    for outcome, kind, name, part in zip(
        errors,
        [CovariateUnknown, CovariateUnknown, NotANumber, ValueOutOfRange],
        ["partial", "none", "infinite", "large"],
        ["rain not found among: heat", "heat, rain not found among: none", "in the channel 'rain'", "channel 'heat'"],
        strict=True,
    ):
        assert type(outcome) is kind
        assert outcome.where == name
        assert repr(name) in outcome.message
        assert part in outcome.message


@DECODERS
def test_a_channel_may_be_missing_in_part_or_completely(decoder: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_channels()
    missing = np.full(24, np.nan)
    means = []
    for heat in (series.channels["heat"], np.where(np.arange(24) < 20, series.channels["heat"], np.nan), missing):
        means.append(predictor.forecast(replace(series, channels={**series.channels, "heat": heat}), 9).mean)
        assert np.isfinite(means[-1]).all()
    assert not np.isclose(means[0], means[1]).any()
    assert not np.isclose(means[0], means[2]).any()
    y = series.y.copy()
    y[-3:] = np.nan
    assert np.isfinite(predictor.forecast(replace(series, y=y), 9).mean).all(), (
        "y may be observed later than its channels"
    )


@DECODERS
def test_sample_paths_depend_on_seed_and_id_and_not_on_the_batch(decoder: str) -> None:
    predictor = Predictor(make_model(decoder, head={"kind": "gaussian"}))
    series = [make_series_with_channels(name=str(seed), seed=seed) for seed in range(3)]
    batch = predictor.sample_batch(series, 5, paths=4, seed=0)
    single = predictor.sample_batch(series[1:2], 5, paths=4, seed=0)
    other_seed = predictor.sample_batch(series[1:2], 5, paths=4, seed=1)
    assert isinstance(single[0], np.ndarray)
    assert single[0].shape == (4, 5)
    assert np.array_equal(single[0], batch[1])
    assert not np.isclose(single[0], other_seed[0]).any()
    assert len(np.unique(single[0])) == single[0].size


@DECODERS
def test_a_diverging_channel_falls_back_to_seasonal_naive_for_that_series_only(decoder: str) -> None:
    spec = make_spec(decoder=decoder, scaling="none", base="last", channels=("heat",))
    network = make_network(spec)
    with torch.no_grad():  # a large channel value grows by a million
        for weight in network.parameters():
            weight.zero_()
        network.recurrent.layers[0].weight_ih_l0[2 * 6 :, 2] = 1.0
        network.output.weight[1:].fill_(1e6)
    predictor = Predictor(FittedModel(spec, "h", 4, START, EMPTY_ENCODING, network))
    history = np.array([1.0, 2.0, 3.0, 4.0] * 4)
    heat = np.ones(16)
    diverging = Series("diverging", START, "h", history, channels={"heat": heat})
    stable = Series("stable", START, "h", history, channels={"heat": 0 * heat})
    diverging_forecast, stable_forecast = predictor.forecast_batch([diverging, stable], 7)
    assert isinstance(diverging_forecast, Forecast)
    assert isinstance(stable_forecast, Forecast)
    assert diverging_forecast.mean.tolist() == [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0]
    assert "diverged at step 1 of 7" in diverging_forecast.warnings[0]
    assert stable_forecast.mean.tolist() == [4.0] * 7
    assert stable_forecast.warnings == ()


# No future


@DECODERS
def test_channels_after_a_cutoff_do_not_change_a_backtest_up_to_it(decoder: str) -> None:
    spec = make_spec(decoder=decoder, channels=CHANNELS)
    forecasters = {"net": Predictor(make_fitted_model(spec)).forecast_batch}
    series, horizon, windows = make_series_with_channels(steps=60), 5, 3
    for window in range(windows):
        cutoff = len(series) - (windows - window) * horizon
        changed = change_channel(series, "heat", slice(cutoff, None), HUGE_VALUE)
        changed = change_channel(changed, "rain", slice(cutoff, None), HUGE_VALUE)
        expected, forecasts = (
            backtest(Panel([item], "h"), forecasters, horizon=horizon, windows=windows, season=4).forecasts["net"][0]
            for item in (series, changed)
        )
        assert np.array_equal(expected[: window + 1], forecasts[: window + 1])
        if window < windows - 1:
            assert not np.array_equal(expected[window + 1], forecasts[window + 1])


@DECODERS
def test_channels_after_an_origin_do_not_change_the_free_running_score(decoder: str) -> None:
    network = make_network(make_spec(decoder=decoder, channels=CHANNELS))
    series = make_series_with_channels(steps=60)
    options: dict[str, Any] = {"context": 16, "horizon": 5, "windows": 1, "season": 4, "channels": CHANNELS}
    expected, changed = (
        score_batch(network, build_validation_batches([item], **options)[0])
        for item in (series, change_channel(series, "heat", slice(55, None), 3.0))
    )
    assert torch.equal(expected.rollout, changed.rollout)
    if decoder == "rollout":  # teacher forcing reads them
        assert not torch.equal(expected.one_step, changed.one_step)


@DECODERS
def test_a_fit_uses_only_the_channels_it_is_given(decoder: str) -> None:
    spec = make_spec(decoder=decoder, channels=CHANNELS, training={"steps": 3, "epoch_steps": 3, "batch": 8})
    series = [make_series_with_channels(steps=60), make_series_with_channels(name="b", steps=55, seed=3)]

    def fit_weights(changed_steps: int) -> list[torch.Tensor]:
        """Returns the weights of a fit to series with a changed channel in the last steps."""
        changed = [
            change_channel(item, "heat", slice(len(item) - changed_steps, len(item)), HUGE_VALUE) for item in series
        ]
        history = hold_out(Panel(changed, "h"), spec.horizon).history
        return list(fit(history, spec, accelerator="cpu").model.network.parameters())

    expected = fit_weights(0)
    assert all(torch.equal(a, b) for a, b in zip(expected, fit_weights(10), strict=True)), "test and validation steps"
    assert not all(torch.equal(a, b) for a, b in zip(expected, fit_weights(11), strict=True)), "training steps"


def test_an_example_has_the_channels_of_its_own_steps_only() -> None:
    first, second = make_series_with_channels(steps=30), make_series_with_channels(name="b", steps=30, seed=3)
    panel_tensor = PanelTensor.from_series([first, second], context=8, horizon=2, channels=("rain", "heat"))
    example = panel_tensor.extract_examples(panel_tensor.starts[1:] + 3, context=8, horizon=2)
    channels = np.stack([second.channels["rain"], second.channels["heat"]], axis=1)
    assert example.window.channels is not None
    assert example.window.channels[0, :5].isnan().all()
    np.testing.assert_array_equal(example.window.channels[0, 5:], channels[:3])
    np.testing.assert_array_equal(example.future, np.stack([second.y[3:5], *channels[3:5].T]))
    assert len(CutoffIndex.from_source(panel_tensor, min_history=4)) == 2 * 26


def test_no_training_example_contains_channels_of_validation_steps() -> None:
    spec = make_spec(channels=CHANNELS, training={"valid_windows": 2, "batch": 64})
    held_out_steps = 2 * spec.horizon
    panel = Panel(
        [change_channel(make_series_with_channels(steps=50), "heat", slice(50 - held_out_steps, None), HUGE_VALUE)], "h"
    )
    data_module = WindowDataModule(panel, spec, make_network(spec), EMPTY_ENCODING, season=4)
    assert data_module._cutoffs.source.channels is not None
    assert not (data_module._cutoffs.source.channels.abs() > HUGE_VALUE / 1e6).any()


# Scoring


@DECODERS
def test_validation_and_backtest_score_only_y_and_agree(decoder: str) -> None:
    fitted_model = make_model(decoder)
    panel = Panel([make_series_with_channels(steps=60), make_series_with_channels(name="b", steps=41, seed=3)], "h")
    forecasters = {"net": Predictor(fitted_model).forecast_batch}
    result = backtest(panel, forecasters, horizon=5, windows=3, season=4)
    [batch] = build_validation_batches(panel.series, context=16, horizon=5, windows=3, season=4, channels=CHANNELS)
    assert float(score_batch(fitted_model.network, batch).rollout) == pytest.approx(
        result.scores("net")["mase"], rel=1e-6
    )
    assert calibrate_model(fitted_model, panel, windows=3).calibration is not None


def test_the_teacher_forced_loss_of_a_validation_batch_equals_that_computed_by_hand() -> None:
    network, series = make_network(make_spec(channels=CHANNELS)), make_series_with_channels(steps=30)
    [batch] = build_validation_batches([series], context=16, horizon=4, windows=1, season=4, channels=CHANNELS)
    start, _ = start_rollout(network, batch.example.window)
    channels = torch.from_numpy(np.stack([series.channels[name] for name in CHANNELS], axis=1))
    errors = []
    for step in range(4):
        history = slice(10, 26 + step)
        state = warm_up(
            network, Window(torch.from_numpy(series.y[history])[None], channels=channels[history][None]), start
        )
        prediction = float(network.head.mean(network.decode(state.output, state.recent, None))[0, 0])
        actual = torch.full((3, 1), series.y[26 + step], dtype=torch.float64)
        errors.append(prediction - float(start.scale.apply(actual, time=16 + step)[0, 0]))
    assert float(score_batch(network, batch).loss) == pytest.approx(np.mean(np.square(errors)), rel=1e-4)


# Bundles


@DECODERS
def test_a_bundle_round_trip_is_bitwise_equal(decoder: str, tmp_path: Path) -> None:
    fitted_model, series = make_model(decoder), make_series_with_channels(seed=3)
    artifact.save_bundle(fitted_model, tmp_path / "bundle", card="")
    loaded = artifact.load_bundle(tmp_path / "bundle")
    assert loaded.spec.channels == CHANNELS
    assert np.array_equal(Predictor(loaded).forecast(series, 7).mean, Predictor(fitted_model).forecast(series, 7).mean)


def test_a_bundle_from_before_channels_loads(tmp_path: Path) -> None:
    fitted_model = make_fitted_model(make_spec())
    artifact.save_bundle(fitted_model, tmp_path / "bundle", card="")
    spec = json.loads((tmp_path / "bundle/spec.json").read_bytes())
    assert spec.pop("channels") == []
    content = json.dumps(spec).encode()
    (tmp_path / "bundle/spec.json").write_bytes(content)
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_bytes())
    manifest["files"]["spec.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (tmp_path / "bundle/manifest.json").write_text(json.dumps(manifest))
    loaded, series = artifact.load_bundle(tmp_path / "bundle"), replace(make_series_with_channels(), channels={})
    assert np.array_equal(Predictor(loaded).forecast(series, 7).mean, Predictor(fitted_model).forecast(series, 7).mean)


# Training

HORIZON, WINDOWS = 3, 20


def make_leading_channel_series() -> Series:
    """Returns a series that follows a channel three steps later, with a little noise. Nothing else predicts it."""
    rng = np.random.default_rng(0)
    early = rng.normal(size=603)
    y = 10 + 2 * early[:600] + 0.1 * rng.normal(size=600)
    return Series("a", START, "h", y, channels={"early": early[3:]})


def mean_error(series: Series, decoder: str, *, channels: tuple[str, ...]) -> float:
    """Returns the mean absolute error of a tiny network over the last origins, after training on the earlier steps."""
    spec = make_spec(
        decoder=decoder,
        context=8,
        horizon=HORIZON,
        channels=channels,
        training={"steps": 300, "epoch_steps": 50, "batch": 32, "learning_rate": 0.02},
    )
    history = Panel([series.take_first(len(series) - WINDOWS * HORIZON)], "h")
    forecast_batch = Predictor(fit(history, spec, accelerator="cpu").model).forecast_batch
    result = backtest(Panel([series], "h"), {"network": forecast_batch}, horizon=HORIZON, windows=WINDOWS, season=1)
    return result.scores("network")["mae"]


@DECODERS
def test_a_leading_channel_is_learned_and_a_shuffled_one_is_not(decoder: str) -> None:
    series = make_leading_channel_series()
    early = np.random.default_rng(1).permutation(series.channels["early"])
    without = mean_error(series, decoder, channels=())
    leading = mean_error(series, decoder, channels=("early",))
    shuffled = mean_error(replace(series, channels={"early": early}), decoder, channels=("early",))
    assert leading < 0.6 * without
    assert shuffled > 0.9 * without


def test_a_fit_names_a_missing_channel() -> None:
    with pytest.raises(CovariateUnknown, match="wind not found among: heat, rain"):
        fit(Panel([make_series_with_channels(steps=60)], "h"), make_spec(channels=("heat", "wind")))


def test_a_count_head_accepts_count_channels_only() -> None:
    rng = np.random.default_rng(0)
    counts = Series("a", START, "h", *rng.poisson(4, size=(1, 60)) * 1.0, channels={"visits": rng.poisson(9, 60) * 1.0})
    counts.channels["visits"][7] = np.nan
    spec = make_spec(
        head={"kind": "neg_binomial"},
        scaling="none",
        channels=("visits",),
        training={"steps": 4, "epoch_steps": 2, "batch": 8},
    )
    forecast = Predictor(fit(Panel([counts], "h"), spec, accelerator="cpu").model).forecast(counts, 5)
    assert np.isfinite(forecast.mean).all()
    for invalid in (0.5, -1.0):
        visits = counts.channels["visits"].copy()
        visits[9] = invalid
        with pytest.raises(BadSpec, match=f"'visits'.*'a' has {invalid:g} at 2026-01-01T09:00:00") as error:
            fit(Panel([replace(counts, channels={"visits": visits})], "h"), spec)
        assert error.value.where == "a"
