"""Columns known of the past alone: learned from, fed back, missed where they are not sent, kept in the bundle."""

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
from tests.factories import START, make_forecaster, make_network, make_spec, make_wave

DECODERS = pytest.mark.parametrize("decoder", ["rollout", "direct"])
CHANNELS = ("heat", "rain")
HUGE_VALUE = 1e9  # no sample has such a value


def make_series_with_channels(*, name: str = "a", steps: int = 24, seed: int = 0) -> Series:
    """A series with two channels, one of which has a gap."""
    heat, rain = 20 * make_wave(steps, seed=seed + 1), make_wave(steps, seed=seed + 2)
    rain[steps - 5] = np.nan
    return Series(name, START, "h", make_wave(steps, seed=seed), channels={"heat": heat, "rain": rain})


def change_channel(series: Series, name: str, steps: slice, by: float = 7.0) -> Series:
    """The series with other values of a channel."""
    values = series.channels[name].copy()
    values[steps] = values[steps] + by * np.random.default_rng(5).normal(size=len(values[steps]))
    return replace(series, channels={**series.channels, name: values})


def make_model(decoder: str = "rollout", **fields: Any) -> FittedModel:
    return make_forecaster(make_spec(decoder=decoder, segment=2, **({"channels": CHANNELS} | fields)))


# The series


def test_a_cut_history_has_no_channel_values_after_the_cut() -> None:
    one = make_series_with_channels()
    history = one.take_first(10)
    for name, values in one.channels.items():
        np.testing.assert_array_equal(history.channels[name], values[:10])
    split = hold_out(Panel([one], "h"), 4)
    assert {len(values) for values in split.history.series[0].channels.values()} == {20}
    assert {len(values) for values in split.full.series[0].channels.values()} == {24}


def test_a_channel_ends_with_the_history() -> None:
    for steps in (23, 25):
        with pytest.raises((AssertionError, TypeError)):  # here the shapes are checked first
            replace(make_series_with_channels(), channels={"heat": make_wave(steps)})


def test_the_panel_digest_depends_on_its_channels() -> None:
    one, values = make_series_with_channels(), make_wave(24)
    others = [
        one,
        change_channel(one, "rain", slice(0, 1)),
        replace(one, channels={"heat": one.channels["heat"]}),
        replace(one, channels={"heat": one.channels["rain"], "rain": one.channels["heat"]}),
        replace(one, channels={}),
        replace(one, channels={"x": values}),
        replace(one, channels={}, covariates={"x": values}),
    ]
    assert len({Panel([other], "h").digest() for other in others}) == len(others)


# Answering


@DECODERS
@pytest.mark.parametrize("name", CHANNELS)
def test_a_forecast_depends_on_every_channel_within_its_context_only(decoder: str, name: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_channels()
    plain = predictor.forecast(series, 5).mean
    assert (np.abs(predictor.forecast(change_channel(series, name, slice(12, 18)), 5).mean - plain) > 1e-6).all()
    assert np.array_equal(predictor.forecast(change_channel(series, name, slice(0, 24 - 16)), 5).mean, plain)


@DECODERS
def test_channels_are_matched_by_name_and_others_are_ignored(decoder: str) -> None:
    predictor, series = Predictor(make_model(decoder)), make_series_with_channels()
    turned = dict(reversed(series.channels.items())) | {"other": np.full(24, np.inf)}
    assert np.array_equal(
        predictor.forecast(replace(series, channels=turned), 5).mean, predictor.forecast(series, 5).mean
    )


@DECODERS
def test_a_bad_channel_of_one_series_is_reported_for_that_series_only(decoder: str) -> None:
    predictor, good = Predictor(make_model(decoder)), make_series_with_channels()
    bare = replace(
        make_series_with_channels(name="bare"), channels={"heat": make_series_with_channels().channels["heat"]}
    )
    none = replace(make_series_with_channels(name="none"), channels={})
    infinite = change_channel(make_series_with_channels(name="infinite"), "rain", slice(3, 4), by=np.inf)
    large = change_channel(make_series_with_channels(name="large"), "heat", slice(3, 4), by=1e200)
    before, *bad, after = predictor.forecast_batch([good, bare, none, infinite, large, good], 5)
    for outcome in (before, after):
        assert isinstance(outcome, Forecast)
        np.testing.assert_allclose(outcome.mean, predictor.forecast(good, 5).mean, rtol=1e-5)
    for outcome, kind, name, part in zip(
        bad,
        [CovariateUnknown, CovariateUnknown, NotANumber, ValueOutOfRange],
        ["bare", "none", "infinite", "large"],
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
    nothing = np.full(24, np.nan)
    means = []
    for heat in (series.channels["heat"], np.where(np.arange(24) < 20, series.channels["heat"], np.nan), nothing):
        means.append(predictor.forecast(replace(series, channels={**series.channels, "heat": heat}), 9).mean)
        assert np.isfinite(means[-1]).all()
    assert not np.isclose(means[0], means[1]).any()
    assert not np.isclose(means[0], means[2]).any()
    y = series.y.copy()
    y[-3:] = np.nan
    assert np.isfinite(predictor.forecast(replace(series, y=y), 9).mean).all(), "y may come later than its channels"


@DECODERS
def test_sample_paths_depend_on_seed_and_id_and_not_on_the_batch(decoder: str) -> None:
    predictor = Predictor(make_model(decoder, head={"kind": "gaussian"}))
    company = [make_series_with_channels(name=str(seed), seed=seed) for seed in range(3)]
    together = predictor.sample_batch(company, 5, paths=4, seed=0)
    alone = predictor.sample_batch(company[1:2], 5, paths=4, seed=0)
    other = predictor.sample_batch(company[1:2], 5, paths=4, seed=1)
    assert isinstance(alone[0], np.ndarray)
    assert alone[0].shape == (4, 5)
    assert np.array_equal(alone[0], together[1])
    assert not np.isclose(alone[0], other[0]).any()
    assert len(np.unique(alone[0])) == alone[0].size


@DECODERS
def test_a_diverging_channel_falls_back_to_seasonal_naive_for_that_series_only(decoder: str) -> None:
    spec = make_spec(decoder=decoder, scaling="none", base="last", channels=("heat",))
    network = make_network(spec)
    with torch.no_grad():  # the channel moves by a million where it is large
        for weight in network.parameters():
            weight.zero_()
        network.recurrent.layers[0].weight_ih_l0[2 * 6 :, 2] = 1.0
        network.output.weight[1:].fill_(1e6)
    predictor = Predictor(FittedModel(spec, "h", 4, START, EMPTY_ENCODING, network))
    history = np.array([1.0, 2.0, 3.0, 4.0] * 4)
    heat = np.ones(16)
    wild = Series("wild", START, "h", history, channels={"heat": heat})
    calm = Series("calm", START, "h", history, channels={"heat": 0 * heat})
    one, other = predictor.forecast_batch([wild, calm], 7)
    assert isinstance(one, Forecast)
    assert isinstance(other, Forecast)
    assert one.mean.tolist() == [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0]
    assert "diverged at step 1 of 7" in one.warnings[0]
    assert other.mean.tolist() == [4.0] * 7
    assert other.warnings == ()


# No future


@DECODERS
def test_channels_after_a_cutoff_do_not_change_a_backtest_up_to_it(decoder: str) -> None:
    spec = make_spec(decoder=decoder, channels=CHANNELS)
    ask = {"net": Predictor(make_forecaster(spec)).forecast_batch}
    one, horizon, windows = make_series_with_channels(steps=60), 5, 3
    for number in range(windows):
        cut = len(one) - (windows - number) * horizon
        other = change_channel(
            change_channel(one, "heat", slice(cut, None), HUGE_VALUE), "rain", slice(cut, None), HUGE_VALUE
        )
        first, second = (
            backtest(Panel([each], "h"), ask, horizon=horizon, windows=windows, season=4).forecasts["net"][0]
            for each in (one, other)
        )
        assert np.array_equal(first[: number + 1], second[: number + 1])
        if number < windows - 1:
            assert not np.array_equal(first[number + 1], second[number + 1])


@DECODERS
def test_channels_after_an_origin_do_not_change_the_free_running_score(decoder: str) -> None:
    network = make_network(make_spec(decoder=decoder, channels=CHANNELS))
    one = make_series_with_channels(steps=60)
    options: dict[str, Any] = {"context": 16, "horizon": 5, "windows": 1, "season": 4, "channels": CHANNELS}
    plain, other = (
        score_batch(network, build_validation_batches([each], **options)[0])
        for each in (one, change_channel(one, "heat", slice(55, None), 3.0))
    )
    assert torch.equal(plain.rollout, other.rollout)
    if decoder == "rollout":  # what was forced reads them, step by step
        assert not torch.equal(plain.one_step, other.one_step)


@DECODERS
def test_a_fit_uses_only_the_channels_it_is_given(decoder: str) -> None:
    spec = make_spec(decoder=decoder, channels=CHANNELS, training={"steps": 3, "epoch_steps": 3, "batch": 8})
    whole = [make_series_with_channels(steps=60), make_series_with_channels(name="b", steps=55, seed=3)]

    def weights(cut: int) -> list[torch.Tensor]:
        """Of a fit to a panel of which a channel is another in the last steps."""
        panel = Panel([change_channel(one, "heat", slice(len(one) - cut, len(one)), HUGE_VALUE) for one in whole], "h")
        known = hold_out(panel, spec.horizon).history
        return list(fit(known, spec, accelerator="cpu").model.network.parameters())

    expected = weights(0)
    assert all(torch.equal(a, b) for a, b in zip(expected, weights(10), strict=True)), "tested and validated on"
    assert not all(torch.equal(a, b) for a, b in zip(expected, weights(11), strict=True)), "trained on"


def test_an_example_has_the_channels_of_its_own_steps_only() -> None:
    one, other = make_series_with_channels(steps=30), make_series_with_channels(name="b", steps=30, seed=3)
    tape = PanelTensor.from_series([one, other], context=8, horizon=2, channels=("rain", "heat"))
    example = tape.extract_examples(tape.starts[1:] + 3, context=8, horizon=2)
    beside = np.stack([other.channels["rain"], other.channels["heat"]], axis=1)
    assert example.window.channels is not None
    assert example.window.channels[0, :5].isnan().all()
    np.testing.assert_array_equal(example.window.channels[0, 5:], beside[:3])
    np.testing.assert_array_equal(example.future, np.stack([other.y[3:5], *beside[3:5].T]))
    assert len(CutoffIndex.from_panel_tensor(tape, min_history=4)) == 2 * 26


def test_no_training_example_contains_channels_of_validation_steps() -> None:
    spec = make_spec(channels=CHANNELS, training={"valid_windows": 2, "batch": 64})
    held = 2 * spec.horizon
    panel = Panel(
        [change_channel(make_series_with_channels(steps=50), "heat", slice(50 - held, None), HUGE_VALUE)], "h"
    )
    windows = WindowDataModule(panel, spec, make_network(spec), EMPTY_ENCODING, season=4)
    assert windows._cutoffs.panel_tensor.channels is not None
    assert not (windows._cutoffs.panel_tensor.channels.abs() > HUGE_VALUE / 1e6).any()


# Scoring


@DECODERS
def test_validation_and_backtest_score_only_y_and_agree(decoder: str) -> None:
    forecaster = make_model(decoder)
    panel = Panel([make_series_with_channels(steps=60), make_series_with_channels(name="b", steps=41, seed=3)], "h")
    ask = {"net": Predictor(forecaster).forecast_batch}
    result = backtest(panel, ask, horizon=5, windows=3, season=4)
    [batch] = build_validation_batches(panel.series, context=16, horizon=5, windows=3, season=4, channels=CHANNELS)
    assert float(score_batch(forecaster.network, batch).rollout) == pytest.approx(
        result.scores("net")["mase"], rel=1e-6
    )
    assert calibrate_model(forecaster, panel, windows=3).calibration is not None


def test_the_teacher_forced_loss_of_a_validation_batch_equals_that_computed_by_hand() -> None:
    network, one = make_network(make_spec(channels=CHANNELS)), make_series_with_channels(steps=30)
    [batch] = build_validation_batches([one], context=16, horizon=4, windows=1, season=4, channels=CHANNELS)
    start, _ = start_rollout(network, batch.example.window)
    beside = torch.from_numpy(np.stack([one.channels[name] for name in CHANNELS], axis=1))
    errors = []
    for step in range(4):
        known = slice(10, 26 + step)
        memory = warm_up(network, Window(torch.from_numpy(one.y[known])[None], channels=beside[known][None]), start)
        ahead = float(network.head.mean(network.decode(memory.output, memory.recent, None))[0, 0])
        actual = torch.full((3, 1), one.y[26 + step], dtype=torch.float64)
        errors.append(ahead - float(start.scale.apply(actual, time=16 + step)[0, 0]))
    assert float(score_batch(network, batch).loss) == pytest.approx(np.mean(np.square(errors)), rel=1e-4)


# Keeping


@DECODERS
def test_a_bundle_round_trip_is_bitwise_equal(decoder: str, tmp_path: Path) -> None:
    forecaster, series = make_model(decoder), make_series_with_channels(seed=3)
    artifact.save_bundle(forecaster, tmp_path / "bundle", card="")
    again = artifact.load_bundle(tmp_path / "bundle")
    assert again.spec.channels == CHANNELS
    assert np.array_equal(Predictor(again).forecast(series, 7).mean, Predictor(forecaster).forecast(series, 7).mean)


def test_a_bundle_from_before_channels_loads(tmp_path: Path) -> None:
    forecaster = make_forecaster(make_spec())
    artifact.save_bundle(forecaster, tmp_path / "bundle", card="")
    spec = json.loads((tmp_path / "bundle/spec.json").read_bytes())
    assert spec.pop("channels") == []
    content = json.dumps(spec).encode()
    (tmp_path / "bundle/spec.json").write_bytes(content)
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_bytes())
    manifest["files"]["spec.json"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (tmp_path / "bundle/manifest.json").write_text(json.dumps(manifest))
    again, series = artifact.load_bundle(tmp_path / "bundle"), replace(make_series_with_channels(), channels={})
    assert np.array_equal(Predictor(again).forecast(series, 7).mean, Predictor(forecaster).forecast(series, 7).mean)


# Learning

HORIZON, WINDOWS = 3, 20


def make_leading_channel_series() -> Series:
    """A channel that every value of y repeats three steps later, with a little noise: nothing else foretells it."""
    draw = np.random.default_rng(0)
    early = draw.normal(size=603)
    y = 10 + 2 * early[:600] + 0.1 * draw.normal(size=600)
    return Series("a", START, "h", y, channels={"early": early[3:]})


def mean_error(series: Series, decoder: str, *, channels: tuple[str, ...]) -> float:
    """Mean absolute error over the last origins of a tiny network that was trained before them."""
    spec = make_spec(
        decoder=decoder,
        context=8,
        horizon=HORIZON,
        channels=channels,
        training={"steps": 300, "epoch_steps": 50, "batch": 32, "learning_rate": 0.02},
    )
    known = Panel([series.take_first(len(series) - WINDOWS * HORIZON)], "h")
    ask = Predictor(fit(known, spec, accelerator="cpu").model).forecast_batch
    result = backtest(Panel([series], "h"), {"network": ask}, horizon=HORIZON, windows=WINDOWS, season=1)
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
    draw = np.random.default_rng(0)
    counts = Series(
        "a", START, "h", *draw.poisson(4, size=(1, 60)) * 1.0, channels={"visits": draw.poisson(9, 60) * 1.0}
    )
    counts.channels["visits"][7] = np.nan
    spec = make_spec(
        head={"kind": "neg_binomial"},
        scaling="none",
        channels=("visits",),
        training={"steps": 4, "epoch_steps": 2, "batch": 8},
    )
    outcome = Predictor(fit(Panel([counts], "h"), spec, accelerator="cpu").model).forecast(counts, 5)
    assert np.isfinite(outcome.mean).all()
    for odd in (0.5, -1.0):
        visits = counts.channels["visits"].copy()
        visits[9] = odd
        with pytest.raises(BadSpec, match=f"'visits'.*'a' has {odd:g} at 2026-01-01T09:00:00") as error:
            fit(Panel([replace(counts, channels={"visits": visits})], "h"), spec)
        assert error.value.where == "a"
