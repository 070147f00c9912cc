"""The bundle that ships with the package, and its models for data of several frequencies."""

from __future__ import annotations

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.bundle.pretrained.base import BASE_FOLDER, base_predictor, load_base
from forecaster.bundle.pretrained.specification import BASE_NAME
from forecaster.series import Forecast
from forecaster.training.pretraining.card import format_pretraining_command
from forecaster.training.pretraining.module import PretrainingOptions
from tests.factories import make_series

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
