"""The pretrained network `base`: it ships with the package, and forecasts series of any frequency and season untrained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from forecaster.bundle.artifact import load_predictor
from forecaster.bundle.pretrained.specification import base_spec
from forecaster.data.calendar import default_season
from forecaster.engines.engine import Engine
from forecaster.prediction.fitted_model import StoredModel
from forecaster.prediction.predictor import Predictor

BASE_FOLDER = Path(__file__).with_name("base")


@lru_cache(maxsize=1)
def load_base() -> StoredModel:
    """Loads the shipped bundle and verifies it, once per process; raises BundleError if it is damaged."""
    stored = load_predictor(BASE_FOLDER).fitted_model
    assert isinstance(stored, StoredModel)
    return stored


def specialize_base(
    freq: str,
    *,
    horizon: int,
    season: int | None = None,
    name: str | None = None,
    stored: StoredModel | None = None,
) -> StoredModel:
    """Returns the pretrained model for data with this frequency and season: the weights are the same for all of them.

    Args:
        freq: The frequency of the data.
        horizon: Steps ahead that a test or a fit scores; forecasts of any horizon are possible.
        season: Steps of a season; by default that of the frequency.
        name: Name of the model, by default `base`.
        stored: Another result of `forecaster pretrain` than the shipped one.
    """
    stored = load_base() if stored is None else stored
    season = season or default_season(freq)
    fields = {} if name is None else {"name": name}
    spec = base_spec(season, horizon=horizon, network=stored.spec.network.model_dump(), **fields)
    return replace(stored, spec=spec, freq=freq, season=season)


def base_predictor(
    freq: str,
    *,
    horizon: int,
    season: int | None = None,
    engine: Engine | None = None,
    clock: Callable[[], datetime] | None = None,
) -> Predictor:
    """Returns a predictor of the pretrained model for data with this frequency and season.

    Its engine depends on the season alone, so predictors of several frequencies may share one.
    """
    return Predictor(specialize_base(freq, horizon=horizon, season=season), engine=engine, clock=clock)
