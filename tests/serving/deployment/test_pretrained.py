"""The pretrained network as a deployed model: always there, one predictor for each frequency and season, bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from forecaster.bundle.pretrained.base import base_predictor, load_base
from forecaster.series import Forecast, Series
from serving.deployment import pretrained
from serving.deployment.pretrained import PretrainedPredictors, PretrainedSlot
from serving.settings import Settings


def make_history(freq: str, steps: int = 60) -> Series:
    y = 50 + 10 * np.sin(np.arange(steps)) + 0.1 * np.arange(steps)
    return Series("a", pd.Timestamp("2024-01-01"), freq, y)


def test_the_slot_has_the_network_without_any_folder(tmp_path: Path) -> None:
    changes: list[str] = []
    slot = PretrainedSlot(tmp_path / "missing", on_model_change=changes.append)
    slot.reload_if_changed()
    model = slot.current
    assert model is not None
    assert (model.release.name, model.is_pretrained) == ("base", True)
    slot.reload_if_changed()
    assert slot.current is model
    assert changes == ["swapped"]
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(("freq", "season"), [("D", None), ("MS", None), ("h", 168), ("D", 365)])
def test_each_frequency_and_season_gets_the_forecast_of_its_own_predictor(freq: str, season: int | None) -> None:
    predictor = PretrainedPredictors().specialize(freq, season)
    own = base_predictor(freq, horizon=load_base().spec.horizon, season=season)
    history = make_history(freq)
    forecasts = [each.forecast_batch([history], 12)[0] for each in (predictor, own)]
    assert all(isinstance(forecast, Forecast) for forecast in forecasts)
    np.testing.assert_array_equal(*(forecast.mean for forecast in forecasts if isinstance(forecast, Forecast)))


def test_frequencies_with_one_season_share_an_engine() -> None:
    predictors = PretrainedPredictors()
    days, minutes = predictors.specialize("D"), predictors.specialize("min", 7)
    assert days.fitted_model.freq != minutes.fitted_model.freq
    assert days.engine is minutes.engine
    assert predictors.specialize("D") is days


def test_the_number_of_predictors_and_engines_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "MAX_ENGINES", 3)
    monkeypatch.setattr(pretrained, "MAX_PREDICTORS", 5)
    predictors = PretrainedPredictors()
    first = predictors.specialize("h", 2)
    for season in range(3, 12):
        predictors.specialize("h", season)
    assert predictors.counts() == (3, 5)
    assert predictors.specialize("h", 2) is not first


def test_the_settings_name_either_a_model_or_the_pretrained_network(tmp_path: Path) -> None:
    settings = Settings(pretrained=True, registry="sqlite:///x.db", slot=tmp_path, shadow="challenger", ledger="on")
    assert not settings.follows_registry
    assert settings.shadow_slot is None
    with pytest.raises(ValidationError, match="names a registered model"):
        Settings(pretrained=True, model="hospital")
