"""A predictor is pickled by the path and the digest of its bundle."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from forecaster.bundle.artifact import load_predictor, save_bundle
from forecaster.bundle.pretrained.base import base_predictor
from forecaster.errors import BundleError
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast
from tests.factories import make_fitted_model, make_series, make_spec, make_wave

SERIES = make_series(make_wave(60))


def read_clock() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(make_fitted_model(make_spec()), tmp_path / "bundle", card="# a")
    return tmp_path / "bundle"


def forecast_mean(predictor: Predictor) -> np.ndarray:
    outcome = predictor.forecast(SERIES, 3)
    assert isinstance(outcome, Forecast)
    return outcome.mean


def test_a_pickled_predictor_is_loaded_again_from_its_bundle(folder: Path) -> None:
    predictor = load_predictor(folder, clock=read_clock)
    content = pickle.dumps(predictor)
    assert len(content) < 1000
    np.testing.assert_array_equal(forecast_mean(pickle.loads(content)), forecast_mean(predictor))


def test_cloudpickle_also_takes_a_local_clock(folder: Path) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    predictor = load_predictor(folder, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    copy = pickle.loads(cloudpickle.dumps(predictor))
    np.testing.assert_array_equal(forecast_mean(copy), forecast_mean(predictor))


def test_a_changed_or_missing_bundle_is_an_error_when_a_pickle_is_loaded(folder: Path) -> None:
    content = pickle.dumps(load_predictor(folder))
    folder.rename(folder.with_name("moved"))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        pickle.loads(content)
    save_bundle(make_fitted_model(make_spec(), seed=2), folder, card="# b")
    with pytest.raises(BundleError, match=r"Expected the bundle with the digest .*Load the predictor again"):
        pickle.loads(content)


def test_a_model_in_memory_cannot_be_pickled() -> None:
    with pytest.raises(BundleError, match=r"in memory only\. Write a bundle"):
        pickle.dumps(Predictor(make_fitted_model(make_spec())))


@pytest.mark.integration
def test_a_spawned_process_receives_the_pretrained_network() -> None:
    predictor = base_predictor("h", horizon=3)
    with get_context("spawn").Pool(1) as pool:
        [mean] = pool.map(forecast_mean, [predictor])
    np.testing.assert_array_equal(mean, forecast_mean(predictor))
