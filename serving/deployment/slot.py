"""The slot: the folder of the deployed model, its atomic replacement, and the workers' reference to it.

A slot is a folder that a follower writes and workers read:

    current -> releases/<digest>      replaced by one atomic rename
    releases/<digest>/release.json    {name, version, digest}
    releases/<digest>/bundle/         the files of the bundle
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from forecaster.errors import BundleDamaged, ForecasterError
from forecaster.frequency.timestamps import Timestamp, build_timestamps, synthetic_start, timestamp_at
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from forecaster.storage.failpoints import fail_point
from serving.deployment import status
from serving.deployment.releases import Release, bundle_path, current_folder, read_slot_file, validate_digest

if TYPE_CHECKING:
    from forecaster.data.encoding import Encoding
    from forecaster.intervals.adaptive import AdaptiveState
    from forecaster.intervals.calibration import Calibration
    from forecaster.spec import Spec

log = logging.getLogger(__name__)


class FittedModelProtocol(Protocol):
    """The part of `FittedModel` that serving uses."""

    @property
    def spec(self) -> Spec:
        """The specification of the model."""

    @property
    def freq(self) -> str:
        """The frequency of its training data."""

    @property
    def season(self) -> int:
        """The season length, in steps."""

    @property
    def cutoff(self) -> Timestamp:
        """The last timestamp of its training data."""

    @property
    def encoding(self) -> Encoding:
        """How covariates and categories are encoded as numbers."""

    @property
    def facts(self) -> dict[str, Any]:
        """Metadata about training and scores."""

    @property
    def calibration(self) -> Calibration | None:
        """The offsets from point forecasts to quantiles; None if the model was not calibrated."""

    @property
    def blend_weights(self) -> Mapping[str, float]:
        """The weights of the network and of statistical models in a blend; empty if the network forecasts alone."""


class PredictorProtocol(Protocol):
    """The part of `Predictor` that serving uses."""

    @property
    def fitted_model(self) -> FittedModelProtocol:
        """The fitted model."""

    @property
    def has_quantiles(self) -> bool:
        """Whether forecasts may have quantiles."""

    def forecast_batch(
        self,
        series: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        joint: bool = False,
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """Returns one outcome per series, in order; raises LevelOutOfRange for unsupported levels.

        `joint` is passed only if it was requested, and `adaptive_state` only if late actuals have produced one.
        """

    def sample_batch(
        self,
        series: Sequence[Series],
        horizon: int,
        *,
        paths: int,
        seed: int,
        first_path: int = 0,
        temperature: float = 1.0,
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Returns sample paths of each series, in order, numbered from `first_path`.

        `temperature` is passed only if it is not 1. Raises BadSpec if the model's head has no distribution.
        """

    def predict_probabilities(
        self, series: Sequence[Series], horizon: int = 1
    ) -> list[Float64[np.ndarray, "horizon symbol"] | ForecasterError]:
        """Returns the probabilities of the next symbols of each series; called for models of symbols only."""

    def forecast_scenarios(
        self,
        scenarios: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        joint: bool = False,
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """Returns the forecasts of one history under several futures of its covariates."""

    def sample_scenarios(
        self, scenarios: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Returns sample paths of each scenario, with common noise."""

    def truncate_history(self, series: Series) -> Series:
        """Returns the history cut down to what later forecasts need."""


RecordForecasts = Callable[["DeployedModel", Sequence[Series], Sequence[Forecast | ForecasterError]], object]
"""Called with the model, the histories and the outcomes of every served batch."""


def _record_nothing(_: DeployedModel, __: Sequence[Series], ___: Sequence[Forecast | ForecasterError]) -> None:
    """Does not record forecasts."""


MeasureRollout = Callable[[int, float, int], object]
"""Called after every rollout with the number of series, the seconds, and the number of forecasts with a fallback."""


def _measure_nothing(_: int, __: float, ___: int) -> None:
    """Does not measure rollouts."""


Specialize = Callable[[str, int | None], PredictorProtocol]
"""Returns the predictor of the pretrained network for a frequency and a season; None: the usual season of the frequency."""


@dataclass(frozen=True, eq=False)
class DeployedModel:
    """The model in use: its release, its predictor and its model card (Markdown).

    With `specialize` it is the pretrained network, which forecasts series of any frequency: its own predictor only describes it,
    and `for_series` returns the one that forecasts.
    """

    release: Release
    predictor: PredictorProtocol
    card: str
    loaded_at: float = field(default_factory=time.monotonic)
    adaptive_state: AdaptiveState | None = None  # adapts its intervals to late actuals
    record_forecasts: RecordForecasts = _record_nothing
    measure_rollout: MeasureRollout = _measure_nothing
    specialize: Specialize | None = None

    @property
    def is_pretrained(self) -> bool:
        """Whether it is the pretrained network, which has no frequency and season of its own."""
        return self.specialize is not None

    def for_series(self, freq: str, season: int | None = None) -> DeployedModel:
        """Returns the model that forecasts series of a frequency and season: itself, unless it is the pretrained network."""
        return self if self.specialize is None else replace(self, predictor=self.specialize(freq, season))

    def find_horizon(self, freq: str) -> int:
        """Returns the horizon of requests that have none: that of the model, or the usual one of the frequency."""
        from forecaster.data.calendar import default_horizon

        return default_horizon(freq) if self.is_pretrained else self.predictor.fitted_model.spec.horizon

    @property
    def info(self) -> dict[str, Any]:
        """The model as every response names it (a ModelInfo): its release, the weights of a blend, its reliable horizon."""
        blend, facts = self.predictor.fitted_model.blend_weights, self.predictor.fitted_model.facts
        reliable = facts.get("reliable_horizon")
        return {
            **self.release.model_dump(),
            **({"blend": dict(blend)} if blend else {}),
            **({"reliable_horizon": reliable} if type(reliable) is int else {}),
        }

    @property
    def age_s(self) -> float:
        """Seconds since the model was loaded."""
        return time.monotonic() - self.loaded_at


LoadPredictor = Callable[[Path], PredictorProtocol]
OnModelChange = Callable[[str], None]  # "swapped" or "refused"


def load_bundle(folder: Path) -> PredictorProtocol:
    """Loads the Predictor of a bundle, on the fastest engine that supports it; raises BundleError or MissingPackage."""
    from forecaster.bundle import artifact  # imported only when there is a bundle to load

    return artifact.load_predictor(folder, clock=lambda: datetime.now(UTC))


def _read_card(bundle: Path) -> str:
    from forecaster.bundle import artifact

    return artifact.read_card(bundle)


class Slot:
    """A reference to the model in use, and a thread that reloads it. Requests read `current` once."""

    def __init__(
        self,
        folder: Path,
        *,
        load: LoadPredictor = load_bundle,
        reload_s: float = 1.0,
        retry_s: float = 60.0,
        on_model_change: OnModelChange = lambda _: None,
        measure_rollout: MeasureRollout = _measure_nothing,
    ) -> None:
        self.current: DeployedModel | None = None
        self.rejection: status.BundleRejection | None = None  # of the current release, if it was rejected
        self.last_check = status.SlotCheck()
        self._folder = folder
        self._load = load
        self._reload_s = reload_s
        self._retry_s = retry_s
        self._on_model_change = on_model_change
        self._measure_rollout = measure_rollout
        self._loaded_fingerprint: str | None = None  # of the release in use
        self._rejected: tuple[str, float] | None = None  # fingerprint and time of the rejected release
        self._stop_event = threading.Event()
        self._thread: threading.Thread | None = None

    def with_folder(self, folder: Path) -> Slot:
        """Returns a slot for another folder, with the same loader and intervals."""
        return Slot(folder, load=self._load, reload_s=self._reload_s, retry_s=self._retry_s)

    def start(self) -> None:
        """Starts a thread that checks the folder every `reload_s` seconds until `stop`."""
        self._thread = threading.Thread(target=self._watch, name="slot", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread, without waiting for a bundle that is being loaded."""
        self._stop_event.set()

    def reload_if_changed(self) -> None:
        """Checks the folder: loads the current release if it is new. If that fails, the previous model stays in use.

        No exception leaves this function, because it would end the thread, and with it all later checks. Libraries raise
        exceptions that are no `Exception`, such as SystemExit and the panics of Rust extensions.
        """
        error: BaseException | None = None
        try:
            self._reload_if_changed()
        except BaseException as caught:
            error = caught
        reason = None if error is None else status.describe_check_error(error, self._folder)
        if reason is not None and reason != self.last_check.error:  # logged once, not at every check
            log.error("the slot cannot be checked, the previous model stays in use: %s", reason, exc_info=error)
        self.last_check = status.SlotCheck(time.monotonic(), reason)

    def _reload_if_changed(self) -> None:
        fingerprint = _fingerprint(self._folder)
        if fingerprint is None or fingerprint == self._loaded_fingerprint:
            return
        if (
            self._rejected is not None
            and self._rejected[0] == fingerprint
            and time.monotonic() - self._rejected[1] < self._retry_s
        ):
            return
        try:
            model = self._load_current()
            fail_point("reload.before_swap")
        except BaseException as error:  # no bundle may end this thread; the reason is logged
            self._rejected = (fingerprint, time.monotonic())
            self.rejection = status.BundleRejection(status.describe_error(error, self._folder), time.monotonic())
            reason = error.message if isinstance(error, ForecasterError) else repr(error)
            log.error("a new bundle was rejected, the previous model stays in use: %s", json.dumps(reason))
            self._on_model_change("refused")
            return
        self.current, self._loaded_fingerprint, self._rejected, self.rejection = model, fingerprint, None, None
        log.info("in use: %s", model.release.model_dump_json())
        self._on_model_change("swapped")

    def _watch(self) -> None:
        while True:
            self.reload_if_changed()
            if self._stop_event.wait(self._reload_s):
                return

    def _load_current(self) -> DeployedModel:
        folder = current_folder(self._folder)
        release, bundle = Release.load(folder), folder / "bundle"
        validate_digest(bundle, release)
        predictor = self._load(bundle)
        run_smoke_test(predictor)
        return DeployedModel(release, predictor, _read_card(bundle), measure_rollout=self._measure_rollout)


def validate_release(slot: Path, release: Release, load: LoadPredictor = load_bundle) -> None:
    """Loads a release of the slot as a worker does; raises BundleError or MissingPackage if a worker would reject it."""
    bundle = bundle_path(slot, release)
    validate_digest(bundle, release)
    load(bundle)


def _fingerprint(slot: Path) -> str | None:
    """Returns a text that changes with the current release, by two small reads; None for an empty slot.

    Raises OSError or UnicodeDecodeError if the slot has a current release that cannot be read.
    """
    try:
        os.lstat(slot / "current")
    except FileNotFoundError:
        return None
    return read_slot_file(current_folder(slot), "release.json").decode("utf-8")


def run_smoke_test(predictor: PredictorProtocol) -> None:
    """Runs the first rollout, which is slow, before any request; raises BundleDamaged if the forecast is not finite."""
    fitted_model = predictor.fitted_model
    spec, freq = fitted_model.spec, fitted_model.freq
    start = timestamp_at(build_timestamps(synthetic_start(freq), freq=freq, steps=1), 0)
    steps = np.arange(spec.context, dtype=np.float64)
    y = 1 + steps % len(spec.head.vocabulary) if spec.head.is_symbolic else 100 + np.sin(steps)
    covariates = _typical_covariates(fitted_model, spec.context + spec.horizon)
    channels = dict.fromkeys(spec.channels, y)
    history = Series("warm-up", start, freq, y, covariates, channels=channels)
    outcome = predictor.forecast_batch([history], spec.horizon)[0]
    if isinstance(outcome, ForecasterError):
        raise outcome
    if not np.isfinite(outcome.mean).all():
        raise BundleDamaged(
            "Expected finite forecasts of a sine wave; found NaN or infinity. Train the model again.", where="warm-up"
        )


def _typical_covariates(fitted_model: FittedModelProtocol, steps: int) -> dict[str, np.ndarray]:
    """Returns typical covariates: the mean of each numeric one, and the first category of each categorical one."""
    means = {name: np.full(steps, mean) for name, (mean, _) in fitted_model.encoding.numeric.items()}
    categories = fitted_model.encoding.categories.items()
    return means | {name: np.full(steps, (*values, "")[0], dtype=object) for name, values in categories}
