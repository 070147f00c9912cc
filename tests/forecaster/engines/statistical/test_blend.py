"""Tests of blends: forecasts, intervals, bundles, and histories that a statistical model cannot be fitted to."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.data.split import rolling_origins
from forecaster.engines.statistical import blend
from forecaster.engines.statistical.blend import NETWORK
from forecaster.engines.statistical.models import STATSFORECAST_CLASSES
from forecaster.errors import BadSpec, BundleDamaged, GoldenMismatch, MissingPackage
from forecaster.evaluation.calibration import calibrate_model
from forecaster.evaluation.rolling_origins import forecast_all_origins
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Panel, Series
from forecaster.spec import StatisticalModel
from pipelines.commands.options import BlendOption
from tests.factories import make_fitted_model, make_series, make_spec, make_wave
from tests.forecaster.bundle.test_artifact import rewrite_file

pytestmark = pytest.mark.integration

THETA = "dynamic_optimized_theta"
WEIGHTS = {NETWORK: 0.6, THETA: 0.4}
HORIZON = 6

models = pytest.importorskip("statsforecast.models")


def make_blended_model(weights: dict[str, float] | None = None, **fields: object) -> FittedModel:
    spec = make_spec(horizon=HORIZON, blend=[THETA], **fields)  # type: ignore[arg-type]
    return replace(make_fitted_model(spec), blend_weights=WEIGHTS if weights is None else weights)


def make_network_predictor(fitted_model: FittedModel) -> Predictor:
    return Predictor(replace(fitted_model, blend_weights={}))


def make_histories() -> list[Series]:
    """Returns histories without gaps, with gaps, too short for any model, and longer than MAX_FIT_STEPS."""
    values = [make_wave(40), make_wave(31, seed=1), make_wave(4, seed=2), make_wave(blend.MAX_FIT_STEPS + 40, seed=3)]
    values[1][[3, 10, 11, 30]] = np.nan
    values[2][:2] = np.nan
    return [make_series(y, name=f"s{index}") for index, y in enumerate(values)]


def hide_statsforecast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsforecast", None)
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)


def test_a_blend_is_the_weighted_sum_of_its_forecasts() -> None:
    fitted_model, series = make_blended_model(), make_histories()
    blended_outcomes = Predictor(fitted_model).forecast_batch(series, HORIZON)
    network_outcomes = make_network_predictor(fitted_model).forecast_batch(series, HORIZON)
    for index, tail in ((0, series[0].y), (3, series[3].y[-blend.MAX_FIT_STEPS :])):
        blended, network = blended_outcomes[index], network_outcomes[index]
        assert isinstance(blended, Forecast)
        assert isinstance(network, Forecast)
        theta = models.DynamicOptimizedTheta(season_length=4).forecast(tail, HORIZON)["mean"]
        np.testing.assert_allclose(blended.mean, 0.6 * network.mean + 0.4 * theta)
        assert blended.ds.equals(network.ds)
        assert not blended.warnings


def test_a_series_a_model_cannot_fit_falls_back_to_the_network_with_a_warning() -> None:
    fitted_model, series = make_blended_model(), make_histories()
    blended = Predictor(fitted_model).forecast(series[2], HORIZON)
    network = make_network_predictor(fitted_model).forecast(series[2], HORIZON)
    np.testing.assert_allclose(blended.mean, network.mean)
    [warning] = blended.warnings
    assert warning.startswith(f"{THETA} could not be fitted (")
    assert "the network's forecast replaces it" in warning


def test_a_blend_is_independent_of_the_batch_and_a_bad_series_affects_no_other() -> None:
    predictor, series = Predictor(make_blended_model()), make_histories()
    bad = make_series(make_wave(2), name="bad")
    outcomes = predictor.forecast_batch([bad, *series, bad], HORIZON)
    assert not isinstance(outcomes[0], Forecast)
    for item, outcome in zip(series, outcomes[1:-1], strict=True):
        expected = predictor.forecast(item, HORIZON)
        assert isinstance(outcome, Forecast)
        assert (outcome.id, outcome.warnings) == (item.id, expected.warnings)
        np.testing.assert_allclose(outcome.mean, expected.mean, rtol=1e-5)


@pytest.mark.parametrize("reads", ["window", "history"])
def test_blend_forecasts_for_all_origins_equal_those_at_each_origin(reads: str) -> None:
    predictor, series, windows = Predictor(make_blended_model(reads=reads)), make_histories()[:3], 9
    means = forecast_all_origins(predictor, series, horizon=HORIZON, windows=windows, stride=3)
    warning_count = 0
    for row, item in enumerate(series):
        for window, distance in enumerate(rolling_origins(windows=windows, horizon=HORIZON, stride=3)):
            if len(item) - distance < predictor.fitted_model.spec.min_steps:
                assert np.isnan(means[row, window]).all()
                continue
            expected = predictor.forecast(item.take_first(len(item) - distance), HORIZON)
            np.testing.assert_allclose(means[row, window], expected.mean, rtol=1e-4)
            warning_count += bool(expected.warnings)
    assert warning_count, "the test needs an origin at which the network replaces a statistical model"


def test_quantiles_are_centred_on_the_blend() -> None:
    panel = Panel([make_series(make_wave(60, seed=index), name=f"s{index}") for index in range(30)], "h")
    fitted_model = calibrate_model(make_blended_model(), panel, windows=1)
    blended = Predictor(fitted_model).forecast(panel.series[0], HORIZON, levels=[0.1, 0.9])
    network = make_network_predictor(fitted_model).forecast(panel.series[0], HORIZON, levels=[0.1, 0.9])
    for level in (0.1, 0.9):
        np.testing.assert_allclose(blended.quantiles[level] - blended.mean, network.quantiles[level] - network.mean)
    assert not np.allclose(blended.mean, network.mean)


def test_sample_paths_of_a_blend_are_rejected() -> None:
    fitted_model = make_blended_model(head={"kind": "gaussian"})
    with pytest.raises(BadSpec, match="Sample from its network"):
        Predictor(fitted_model).sample_batch(make_histories()[:1], 3, paths=2, seed=0)
    [paths] = make_network_predictor(fitted_model).sample_batch(make_histories()[:1], 3, paths=2, seed=0)
    assert isinstance(paths, np.ndarray)
    assert paths.shape == (2, 3)


def test_a_blend_is_the_same_after_save_and_load(tmp_path: Path) -> None:
    fitted_model = make_blended_model()
    artifact.save_bundle(fitted_model, tmp_path / "bundle", card="# a blend\n")
    assert "blend.json" in artifact.read_manifest(tmp_path / "bundle").files
    loaded = artifact.load_bundle(tmp_path / "bundle")
    assert loaded.blend_weights == WEIGHTS
    for expected, found in zip(
        Predictor(fitted_model).forecast_batch(make_histories(), HORIZON),
        Predictor(loaded).forecast_batch(make_histories(), HORIZON),
        strict=True,
    ):
        assert isinstance(expected, Forecast)
        assert isinstance(found, Forecast)
        np.testing.assert_array_equal(found.mean, expected.mean)


def test_golden_requests_store_the_blend_and_the_network_forecast(tmp_path: Path) -> None:
    fitted_model = make_blended_model()
    artifact.save_bundle(fitted_model, tmp_path / "bundle", card="")
    golden = json.loads((tmp_path / "bundle" / "golden.json").read_bytes())
    request = golden["requests"][0]
    series = make_series(np.array(request["y"]))
    for key, predictor in (("mean", Predictor(fitted_model)), ("network", make_network_predictor(fitted_model))):
        np.testing.assert_allclose(request[key], predictor.forecast(series, golden["horizon"]).mean)
    assert not np.allclose(request["mean"], request["network"])


@pytest.mark.parametrize("weights", [WEIGHTS, {NETWORK: 0.0, THETA: 1.0}])
def test_a_changed_network_is_detected_even_with_a_small_weight(tmp_path: Path, weights: dict[str, float]) -> None:
    artifact.save_bundle(make_blended_model(weights), tmp_path / "bundle", card="")
    artifact.load_bundle(tmp_path / "bundle")
    artifact.save_bundle(replace(make_fitted_model(make_spec(horizon=HORIZON), seed=5)), tmp_path / "other", card="")
    rewrite_file(tmp_path / "bundle", "weights.safetensors", (tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(GoldenMismatch):
        artifact.load_bundle(tmp_path / "bundle")


def test_changed_blend_weights_are_detected(tmp_path: Path) -> None:
    artifact.save_bundle(make_blended_model(), tmp_path / "bundle", card="")
    rewrite_file(tmp_path / "bundle", "blend.json", blend.serialize_blend_weights({NETWORK: 0.4, THETA: 0.6}))
    with pytest.raises(GoldenMismatch):
        artifact.load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"{}",
        b'{"weights": {}}',
        b'{"weights": {"network": 0.5}}',
        b'{"weights": {"dynamic_optimized_theta": 1.0}}',
        b'{"weights": {"network": 1.5, "dynamic_optimized_theta": -0.5}}',
        b'{"weights": {"network": 0.5, "os": 0.5}}',
        b'{"weights": {"network": 1.0}, "more": 1}',
    ],
)
def test_an_invalid_blend_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    artifact.save_bundle(make_blended_model(), tmp_path / "bundle", card="")
    rewrite_file(tmp_path / "bundle", "blend.json", content)
    with pytest.raises(BundleDamaged) as error:
        artifact.load_bundle(tmp_path / "bundle")
    assert error.value.where == "blend.json"


def test_a_missing_or_modified_blend_file_is_rejected(tmp_path: Path) -> None:
    artifact.save_bundle(make_blended_model(), tmp_path / "bundle", card="")
    path = tmp_path / "bundle" / "blend.json"
    path.write_bytes(blend.serialize_blend_weights({NETWORK: 0.5, THETA: 0.5}))
    with pytest.raises(BundleDamaged, match="digest differs"):
        artifact.load_bundle(tmp_path / "bundle")
    path.unlink()
    with pytest.raises(BundleDamaged, match="cannot be read"):
        artifact.load_bundle(tmp_path / "bundle")


def test_a_bundle_without_a_blend_is_unchanged(tmp_path: Path) -> None:
    artifact.save_bundle(make_fitted_model(make_spec()), tmp_path / "bundle", card="")
    assert "blend.json" not in artifact.read_manifest(tmp_path / "bundle").files
    assert b"network" not in (tmp_path / "bundle" / "golden.json").read_bytes()
    spec = json.loads((tmp_path / "bundle" / "spec.json").read_bytes())
    del spec["blend"]
    rewrite_file(tmp_path / "bundle", "spec.json", json.dumps(spec).encode())
    assert artifact.load_bundle(tmp_path / "bundle").blend_weights == {}, "older versions wrote no blend field"


def test_a_blend_without_its_package_is_rejected_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact.save_bundle(make_blended_model(), tmp_path / "blend", card="")
    artifact.save_bundle(make_blended_model({NETWORK: 1.0, THETA: 0.0}), tmp_path / "alone", card="")
    hide_statsforecast(monkeypatch)
    with pytest.raises(MissingPackage, match=rf"a blend with {THETA}.*recurrent-forecaster\[baselines\]"):
        artifact.load_bundle(tmp_path / "blend")
    predictor = Predictor(artifact.load_bundle(tmp_path / "alone"))
    assert not predictor.forecast(make_histories()[0], HORIZON).warnings, "a model with weight 0 is not fitted"


def test_blend_weights_are_formatted_for_people() -> None:
    assert blend.format_blend_weights({NETWORK: 0.62, THETA: 0.38}) == f"62 % network, 38 % {THETA}"
    assert (
        blend.format_blend_weights({NETWORK: 0.07, THETA: 0.93, "auto_ets": 0.0})
        == f"7 % network, 93 % {THETA}, 0 % auto_ets"
    )


def test_the_spec_and_the_command_line_list_the_available_models() -> None:
    assert set(get_args(StatisticalModel)) == set(STATSFORECAST_CLASSES)
    assert get_args(get_args(get_args(BlendOption)[0])[0]) == get_args(StatisticalModel)
