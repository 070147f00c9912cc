"""The bundle that ships with the package, and its models for data of several frequencies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.bundle.pretrained.base import (
    BASE_FOLDER,
    base_predictor,
    is_base,
    load_base,
    specialize_base,
    zero_shot_predictor,
)
from forecaster.bundle.pretrained.specification import BASE_NAME, MAX_SEASON
from forecaster.series import Forecast
from forecaster.training.pretraining.card import format_pretraining_command
from forecaster.training.pretraining.module import PretrainingOptions
from tests.factories import make_fitted_model, make_series, make_spec

MAX_BYTES = 5_000_000
SEASONS = {"QS": 4, "MS": 12, "D": 7, "h": 24}


def test_the_bundle_is_small_and_verified_on_every_engine() -> None:
    assert sum(path.stat().st_size for path in BASE_FOLDER.iterdir()) <= MAX_BYTES
    model = artifact.load_bundle(BASE_FOLDER)  # replays the golden requests
    assert model.spec.name == BASE_NAME
    assert all(np.isfinite(values).all() for values in load_base().weights[0].values())


def test_the_bundle_names_the_options_that_make_it_again() -> None:
    facts = load_base().facts
    options = PretrainingOptions.model_validate(facts["pretraining"])
    assert options.network == load_base().spec.network
    assert facts["steps"] == options.steps
    assert facts["cpu_seconds"] > 0
    assert format_pretraining_command(options, out=BASE_NAME) in (BASE_FOLDER / "card.md").read_text()


def forecast(history: np.ndarray, freq: str, *, horizon: int) -> np.ndarray:
    [outcome] = base_predictor(freq, horizon=horizon).forecast_batch([make_series(history, freq=freq)], horizon)
    assert isinstance(outcome, Forecast)
    return outcome.mean


@pytest.mark.parametrize(("freq", "season"), SEASONS.items())
def test_a_season_and_a_trend_are_continued(freq: str, season: int) -> None:
    steps = np.arange(11 * season)
    values = 100 + 4 * steps / season + 5 * np.sin(2 * np.pi * steps / season)
    history, actual = values[:-season], values[-season:]
    error = np.abs(forecast(history, freq, horizon=season) - actual).mean()
    assert error < 0.8 * np.abs(history[-season:] - actual).mean(), "the error of seasonal naive"


@pytest.mark.parametrize(("freq", "season"), SEASONS.items())
def test_a_season_without_a_trend_is_repeated(freq: str, season: int) -> None:
    steps = np.arange(11 * season)
    values = 100 + 5 * np.sin(2 * np.pi * steps / season)
    history, actual = values[:-season], values[-season:]
    error = np.abs(forecast(history, freq, horizon=season) - actual).mean()
    assert error < 0.3 * np.abs(history[-1] - actual).mean(), "the error of the last value"


def test_a_trend_of_years_is_continued() -> None:
    values = 20 + 3 * np.arange(40.0) + np.random.default_rng(0).normal(size=40)
    history, actual = values[:-4], values[-4:]
    error = np.abs(forecast(history, "YS", horizon=4) - actual).mean()
    assert error < 0.8 * np.abs(history[-1] - actual).mean(), "the error of the last value"


def test_a_model_with_the_weights_of_the_network_is_it_and_any_other_is_not(tmp_path: Path) -> None:
    model = specialize_base("h", horizon=5).to_fitted_model()
    artifact.save_bundle(model, tmp_path / "own", card="")
    assert is_base(specialize_base("D", horizon=3))
    assert is_base(artifact.load_bundle(tmp_path / "own"))
    assert not is_base(replace(model, blend_weights={"network": 0.5, "dynamic_optimized_theta": 0.5}))
    assert not is_base(make_fitted_model(make_spec()))
    changed = artifact.load_bundle(tmp_path / "own")
    next(weights for weights in changed.network.parameters() if weights.numel()).data += 1e-3
    assert not is_base(changed), "a step of training changes it"


def test_the_network_is_a_baseline_of_other_models_and_of_seasons_that_it_can_read() -> None:
    other = make_fitted_model(make_spec())
    predictor = zero_shot_predictor("h", horizon=5, season=12, models=[other])
    assert predictor is not None
    assert (predictor.fitted_model.freq, predictor.fitted_model.season) == ("h", 12)
    assert zero_shot_predictor("h", horizon=5, season=12, models=[other, load_base()]) is None
    assert zero_shot_predictor("h", horizon=5, season=MAX_SEASON + 1) is None
