"""The pretrained network `base`: it ships with the package, and forecasts series of any frequency and season untrained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.bundle.artifact import compute_bundle_digest, load_predictor, require_digest
from forecaster.bundle.pretrained.specification import BASE_NAME as BASE_NAME
from forecaster.bundle.pretrained.specification import MAX_SEASON, base_spec
from forecaster.data.calendar import default_horizon, default_season
from forecaster.engines.engine import Engine
from forecaster.errors import BadSpec
from forecaster.frequency.timestamps import MAX_INTEGER_TIMESTAMP, Timestamp, is_integer_frequency, parse_frequency
from forecaster.prediction.bounds import EACH_HISTORY, NON_NEGATIVE_FACT
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel

BASE_FOLDER = Path(__file__).with_name("base")
_CALENDAR_START = "0001-01-02"  # one day later than the first, so that it exists in every time zone


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

    It has no training data with a range of their own: forecasts of each history without negative values are bounded at zero.

    Args:
        freq: The frequency of the data.
        horizon: Steps ahead that a test or a fit scores; forecasts of any horizon are possible.
        season: Steps of a season; by default that of the frequency.
        name: Name of the model, by default `base`.
        stored: Another result of `forecaster pretrain` than the shipped one.
    """
    parse_frequency(freq, where="freq")
    stored = load_base() if stored is None else stored
    season = season or default_season(freq)
    validate_season(season)
    fields = {} if name is None else {"name": name}
    spec = base_spec(season, horizon=horizon, network=stored.spec.network.model_dump(), **fields)
    cutoff, facts = _first_timestamp(freq, has_zone=False), {**stored.facts, NON_NEGATIVE_FACT: EACH_HISTORY}
    return replace(stored, spec=spec, freq=freq, season=season, cutoff=cutoff, facts=facts)


def validate_season(season: int) -> None:
    """Raises BadSpec for a season that the network cannot read."""
    if not 1 <= season <= MAX_SEASON:
        raise BadSpec(
            f"Expected a `season` of 1 to {MAX_SEASON} steps; found {season}. Use a shorter season, or data of a coarser "
            "frequency.",
            where="season",
        )


def specialize_to_panel(panel: Panel, *, horizon: int | None = None, season: int | None = None) -> StoredModel:
    """Returns the pretrained model for the data of a panel.

    Its training cutoff lies before all data, because it has learned from generated series only.

    Args:
        panel: The data.
        horizon: Steps ahead; by default the usual horizon of the frequency.
        season: Steps of a season; by default that of the frequency.
    """
    model = specialize_base(panel.freq, horizon=horizon or default_horizon(panel.freq), season=season)
    start = panel.series[0].start
    has_zone = not isinstance(start, int) and start.tz is not None
    return replace(model, cutoff=_first_timestamp(panel.freq, has_zone=has_zone))


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
    origin = BaseOrigin(freq, horizon, season, compute_bundle_digest(BASE_FOLDER), clock)
    return Predictor(specialize_base(freq, horizon=horizon, season=season), engine=engine, clock=clock, origin=origin)


class BaseOrigin(NamedTuple):
    """What the pretrained network was specialised for, as pickles of a predictor hold it.

    Attributes:
        freq, horizon, season, clock: The arguments of `base_predictor`.
        digest: The digest of the shipped bundle.
    """

    freq: str
    horizon: int
    season: int | None
    digest: str
    clock: Callable[[], datetime] | None

    def load(self) -> Predictor:
        """Loads the predictor; raises BundleError if the installed package ships another network."""
        require_digest(BASE_FOLDER, self.digest)
        return base_predictor(self.freq, horizon=self.horizon, season=self.season, clock=self.clock)


def zero_shot_predictor(
    freq: str, *, horizon: int, season: int, models: Iterable[FittedModel | StoredModel] = ()
) -> Predictor | None:
    """Returns the predictor of the pretrained network as a baseline of models that are compared on the same data.

    Returns None if the comparison has these forecasts already, because one of the models is the pretrained network, or if the
    network cannot read the season.

    Args:
        freq: The frequency of the data.
        horizon: Steps ahead.
        season: Steps of a season.
        models: The models.
    """
    if season > MAX_SEASON or any(is_base(model) for model in models):
        return None
    return base_predictor(freq, horizon=horizon, season=season)


def is_base(model: FittedModel | StoredModel) -> bool:
    """Whether a model forecasts as the pretrained network does: it has its weights, and is no blend."""
    base = load_base()
    if model.blend_weights or model.spec.members > 1 or model.spec.network != base.spec.network:
        return False
    [weights], [base_weights] = model.weights, base.weights
    return weights.keys() == base_weights.keys() and all(
        np.array_equal(weights[name], values) for name, values in base_weights.items()
    )


def _first_timestamp(freq: str, *, has_zone: bool) -> Timestamp:
    """Returns a timestamp before all data of this frequency that can be compared with them."""
    if is_integer_frequency(freq):
        return -MAX_INTEGER_TIMESTAMP
    return pd.Timestamp(_CALENDAR_START, tz="UTC" if has_zone else None)
