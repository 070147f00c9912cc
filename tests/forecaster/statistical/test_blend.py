"""A blend answers, is saved and loaded: its forecasts, its intervals, and what happens where a model cannot be fitted."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.data.split import origins
from forecaster.errors import BadSpec, BundleDamaged, GoldenMismatch, MissingPackage
from forecaster.evaluation.calibration import calibrated
from forecaster.evaluation.rolling_origins import all_origins
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Forecast, Panel, Series
from forecaster.spec import Statistical
from forecaster.statistical import blend
from forecaster.statistical.blend import NETWORK
from forecaster.statistical.models import MODELS
from pipelines.commands.options import Blended
from tests.factories import make_forecaster, make_spec, one_series, wave
from tests.forecaster.bundle.test_artifact import rewrite

THETA = "dynamic_optimized_theta"
WEIGHTS = {NETWORK: 0.6, THETA: 0.4}
HORIZON = 6

models = pytest.importorskip("statsforecast.models")


def blending(weights: dict[str, float] | None = None, **fields: object) -> Forecaster:
    spec = make_spec(horizon=HORIZON, blend=[THETA], **fields)  # type: ignore[arg-type]
    return replace(make_forecaster(spec), blend=WEIGHTS if weights is None else weights)


def alone(forecaster: Forecaster) -> Predictor:
    return Predictor(replace(forecaster, blend={}))


def histories() -> list[Series]:
    """Whole, with gaps, too short for any model to be fitted, and longer than what models are fitted to."""
    values = [wave(40), wave(31, seed=1), wave(4, seed=2), wave(blend.LONGEST + 40, seed=3)]
    values[1][[3, 10, 11, 30]] = np.nan
    values[2][:2] = np.nan
    return [one_series(y, name=f"s{number}") for number, y in enumerate(values)]


def lack_statsforecast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsforecast", None)
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)


def test_a_blend_is_the_weighted_sum_of_its_forecasts() -> None:
    forecaster, series = blending(), histories()
    told = Predictor(forecaster).forecast_each(series, HORIZON)
    own = alone(forecaster).forecast_each(series, HORIZON)
    for place, tail in ((0, series[0].y), (3, series[3].y[-blend.LONGEST :])):
        one, network = told[place], own[place]
        assert isinstance(one, Forecast)
        assert isinstance(network, Forecast)
        theta = models.DynamicOptimizedTheta(season_length=4).forecast(tail, HORIZON)["mean"]
        np.testing.assert_allclose(one.mean, 0.6 * network.mean + 0.4 * theta)
        assert one.ds.equals(network.ds)
        assert not one.warnings


def test_a_history_that_a_model_cannot_be_fitted_to_gets_the_networks_own_forecast_and_a_warning() -> None:
    forecaster, series = blending(), histories()
    told, own = Predictor(forecaster).forecast(series[2], HORIZON), alone(forecaster).forecast(series[2], HORIZON)
    np.testing.assert_allclose(told.mean, own.mean)
    [warning] = told.warnings
    assert warning.startswith(f"{THETA} could not be fitted (")
    assert "the network's own forecast stands in" in warning


def test_a_blend_does_not_depend_on_its_company_and_a_bad_series_spoils_none() -> None:
    predictor, series = Predictor(blending()), histories()
    bad = one_series(wave(2), name="bad")
    among = predictor.forecast_each([bad, *series, bad], HORIZON)
    assert not isinstance(among[0], Forecast)
    for one, found in zip(series, among[1:-1], strict=True):
        expected = predictor.forecast(one, HORIZON)
        assert isinstance(found, Forecast)
        assert (found.id, found.warnings) == (one.id, expected.warnings)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5)


@pytest.mark.parametrize("reads", ["window", "history"])
def test_all_origins_at_once_say_what_a_blend_says_at_each(reads: str) -> None:
    predictor, series, windows = Predictor(blending(reads=reads)), histories()[:3], 9
    found = all_origins(predictor, series, horizon=HORIZON, windows=windows, stride=3)
    warned = 0
    for row, one in enumerate(series):
        for window, left in enumerate(origins(windows=windows, horizon=HORIZON, stride=3)):
            if len(one) - left < predictor.forecaster.spec.least:
                assert np.isnan(found[row, window]).all()
                continue
            expected = predictor.forecast(one.until(len(one) - left), HORIZON)
            np.testing.assert_allclose(found[row, window], expected.mean, rtol=1e-4)
            warned += bool(expected.warnings)
    assert warned, "where the network stands in they agree too"


def test_quantiles_are_about_the_blend() -> None:
    panel = Panel([one_series(wave(60, seed=number), name=f"s{number}") for number in range(30)], "h")
    forecaster = calibrated(blending(), panel, windows=1)
    told = Predictor(forecaster).forecast(panel.series[0], HORIZON, levels=[0.1, 0.9])
    own = alone(forecaster).forecast(panel.series[0], HORIZON, levels=[0.1, 0.9])
    for level in (0.1, 0.9):
        np.testing.assert_allclose(told.quantiles[level] - told.mean, own.quantiles[level] - own.mean)
    assert not np.allclose(told.mean, own.mean)


def test_paths_of_a_blend_are_refused() -> None:
    forecaster = blending(head={"kind": "gaussian"})
    with pytest.raises(BadSpec, match="Draw from its network"):
        Predictor(forecaster).sample_each(histories()[:1], 3, paths=2, seed=0)
    assert alone(forecaster).sample_each(histories()[:1], 3, paths=2, seed=0)[0].shape == (2, 3)  # type: ignore[union-attr]


def test_a_blend_is_the_same_after_save_and_load(tmp_path: Path) -> None:
    forecaster = blending()
    artifact.save(forecaster, tmp_path / "bundle", card="# a blend\n")
    assert "blend.json" in artifact.read_manifest(tmp_path / "bundle").files
    loaded = artifact.load(tmp_path / "bundle")
    assert loaded.blend == WEIGHTS
    for one, other in zip(
        Predictor(forecaster).forecast_each(histories(), HORIZON),
        Predictor(loaded).forecast_each(histories(), HORIZON),
        strict=True,
    ):
        assert isinstance(one, Forecast)
        assert isinstance(other, Forecast)
        np.testing.assert_array_equal(one.mean, other.mean)


def test_golden_requests_hold_the_blend_and_the_network_beside_it(tmp_path: Path) -> None:
    forecaster = blending()
    artifact.save(forecaster, tmp_path / "bundle", card="")
    golden = json.loads((tmp_path / "bundle" / "golden.json").read_bytes())
    whole = golden["requests"][0]
    y = one_series(np.array(whole["y"]))
    for key, predictor in (("mean", Predictor(forecaster)), ("network", alone(forecaster))):
        np.testing.assert_allclose(whole[key], predictor.forecast(y, golden["horizon"]).mean)
    assert not np.allclose(whole["mean"], whole["network"])


@pytest.mark.parametrize("weights", [WEIGHTS, {NETWORK: 0.0, THETA: 1.0}])
def test_another_network_is_noticed_however_little_it_counts(tmp_path: Path, weights: dict[str, float]) -> None:
    artifact.save(blending(weights), tmp_path / "bundle", card="")
    artifact.load(tmp_path / "bundle")
    artifact.save(replace(make_forecaster(make_spec(horizon=HORIZON), seed=5)), tmp_path / "other", card="")
    rewrite(tmp_path / "bundle", "weights.safetensors", (tmp_path / "other" / "weights.safetensors").read_bytes())
    with pytest.raises(GoldenMismatch):
        artifact.load(tmp_path / "bundle")


def test_other_weights_of_a_blend_are_noticed(tmp_path: Path) -> None:
    artifact.save(blending(), tmp_path / "bundle", card="")
    rewrite(tmp_path / "bundle", "blend.json", blend.write({NETWORK: 0.4, THETA: 0.6}))
    with pytest.raises(GoldenMismatch):
        artifact.load(tmp_path / "bundle")


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
def test_what_is_no_blend_is_refused(tmp_path: Path, content: bytes) -> None:
    artifact.save(blending(), tmp_path / "bundle", card="")
    rewrite(tmp_path / "bundle", "blend.json", content)
    with pytest.raises(BundleDamaged) as error:
        artifact.load(tmp_path / "bundle")
    assert error.value.where == "blend.json"


def test_a_blend_whose_file_is_gone_or_altered_is_refused(tmp_path: Path) -> None:
    artifact.save(blending(), tmp_path / "bundle", card="")
    path = tmp_path / "bundle" / "blend.json"
    path.write_bytes(blend.write({NETWORK: 0.5, THETA: 0.5}))
    with pytest.raises(BundleDamaged, match="digest is another"):
        artifact.load(tmp_path / "bundle")
    path.unlink()
    with pytest.raises(BundleDamaged, match="cannot be read"):
        artifact.load(tmp_path / "bundle")


def test_a_bundle_without_a_blend_is_written_as_it_always_was(tmp_path: Path) -> None:
    artifact.save(make_forecaster(make_spec()), tmp_path / "bundle", card="")
    assert "blend.json" not in artifact.read_manifest(tmp_path / "bundle").files
    assert b"network" not in (tmp_path / "bundle" / "golden.json").read_bytes()
    spec = json.loads((tmp_path / "bundle" / "spec.json").read_bytes())
    del spec["blend"]
    rewrite(tmp_path / "bundle", "spec.json", json.dumps(spec).encode())
    assert artifact.load(tmp_path / "bundle").blend == {}, "as older versions wrote it"


def test_without_its_package_a_blend_is_refused_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact.save(blending(), tmp_path / "blend", card="")
    artifact.save(blending({NETWORK: 1.0, THETA: 0.0}), tmp_path / "alone", card="")
    lack_statsforecast(monkeypatch)
    with pytest.raises(MissingPackage, match=rf"a blend with {THETA}.*forecaster\[baselines\]"):
        artifact.load(tmp_path / "blend")
    network = Predictor(artifact.load(tmp_path / "alone"))
    assert not network.forecast(histories()[0], HORIZON).warnings, "what has no weight is not fitted"


def test_the_weights_are_told_as_people_read_them() -> None:
    assert blend.tell({NETWORK: 0.62, THETA: 0.38}) == f"62 % network, 38 % {THETA}"
    assert blend.tell({NETWORK: 0.07, THETA: 0.93, "auto_ets": 0.0}) == f"7 % network, 93 % {THETA}, 0 % auto_ets"


def test_specification_and_command_line_name_the_models_that_there_are() -> None:
    assert set(get_args(Statistical)) == set(MODELS)
    assert get_args(get_args(get_args(Blended)[0])[0]) == get_args(Statistical)
