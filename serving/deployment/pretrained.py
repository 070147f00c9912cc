"""The pretrained network as a deployed model: it ships with the package, and forecasts series of any frequency and season."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from forecaster import __version__
from forecaster.storage.failpoints import fail_point
from serving.deployment.releases import Release
from serving.deployment.slot import DeployedModel, MeasureRollout, Slot, run_smoke_test

if TYPE_CHECKING:
    from forecaster.engines.engine import Engine
    from forecaster.prediction.predictor import Predictor

MAX_ENGINES = 16  # one for each season; each holds the weights, some megabytes
MAX_PREDICTORS = 256  # one for each frequency and season; they share the engines

log = logging.getLogger(__name__)


class PretrainedPredictors:
    """The predictors of the pretrained network by frequency and season, built on first use.

    Building one is cheap. Those that were used last are kept, so that requests with ever new frequencies and seasons take no
    more memory. Threads may share the object.
    """

    def __init__(self) -> None:
        from forecaster.bundle.pretrained.base import load_base

        self._horizon = load_base().spec.horizon
        self._find_engine = lru_cache(MAX_ENGINES)(self._build_engine)
        self._find_predictor = lru_cache(MAX_PREDICTORS)(self._build_predictor)

    def specialize(self, freq: str, season: int | None = None) -> Predictor:
        """Returns the predictor for a frequency and a season, by default the usual season of the frequency."""
        return self._find_predictor(freq, season)

    def counts(self) -> tuple[int, int]:
        """Returns how many engines and predictors are kept."""
        return self._find_engine.cache_info().currsize, self._find_predictor.cache_info().currsize

    def _build_predictor(self, freq: str, season: int | None) -> Predictor:
        from forecaster.bundle.pretrained.base import base_predictor
        from forecaster.data.calendar import default_season

        season = season or default_season(freq)
        engine = self._find_engine(season)
        return base_predictor(
            freq, horizon=self._horizon, season=season, engine=engine, clock=lambda: datetime.now(UTC)
        )

    def _build_engine(self, season: int) -> Engine:
        from forecaster.bundle.pretrained.base import specialize_base
        from forecaster.prediction.engine_choice import choose_engine

        return choose_engine(specialize_base("1", horizon=self._horizon, season=season))


def load_pretrained_model(measure_rollout: MeasureRollout) -> DeployedModel:
    """Loads the pretrained network as the model in use. Its version is that of the package.

    Raises BundleError if it is damaged, and MissingPackage if this installation cannot run it.
    """
    from forecaster.bundle import artifact
    from forecaster.bundle.pretrained.base import BASE_FOLDER, load_base

    predictors, stored = PretrainedPredictors(), load_base()
    predictor = predictors.specialize(stored.freq, stored.season)
    run_smoke_test(predictor)
    release = Release(name=stored.spec.name, version=__version__, digest=artifact.compute_bundle_digest(BASE_FOLDER))
    return DeployedModel(
        release,
        predictor,
        artifact.read_card(BASE_FOLDER),
        measure_rollout=measure_rollout,
        specialize=predictors.specialize,
    )


@lru_cache(maxsize=1)
def _shared_predictors() -> PretrainedPredictors:
    return PretrainedPredictors()


def find_zero_shot_predictor(model: DeployedModel) -> Predictor | None:
    """Returns the predictor of the pretrained network as the baseline of a registered model.

    Returns None if the model is the pretrained network itself, or if the network cannot read its season.
    """
    from forecaster.bundle.pretrained.base import is_base
    from forecaster.bundle.pretrained.specification import MAX_SEASON
    from forecaster.prediction.fitted_model import FittedModel, StoredModel

    fitted_model = model.predictor.fitted_model
    if model.is_pretrained or fitted_model.season > MAX_SEASON:
        return None
    if isinstance(fitted_model, (FittedModel, StoredModel)) and is_base(fitted_model):
        return None
    return _shared_predictors().specialize(fitted_model.freq, fitted_model.season)


class PretrainedSlot(Slot):
    """A slot that always has the pretrained network: no folder, no registry and no follower are needed."""

    def _reload_if_changed(self) -> None:
        if self.current is not None:
            return
        model = load_pretrained_model(self._measure_rollout)
        fail_point("reload.before_swap")
        self.current = model
        log.info("in use: %s", json.dumps(model.release.model_dump()))
        self._on_model_change("swapped")
