"""The model in use and its replacement.

A slot is a folder that a follower writes and workers read:

    current -> releases/<digest>      changed by one atomic rename
    releases/<digest>/release.json    {name, version, digest}
    releases/<digest>/bundle/         the files of the bundle
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forecaster.errors import BundleDamaged, ForecasterError
from forecaster.frequency import Timestamp, build_timestamps, synthetic_start, timestamp_at
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64
from forecaster.storage import atomic
from forecaster.storage.failpoints import fail_point
from serving.deployment import status

if TYPE_CHECKING:
    from forecaster.data.encoding import Encoding
    from forecaster.intervals.adaptive import AdaptiveState
    from forecaster.spec import Spec

log = logging.getLogger(__name__)


class FittedModelProtocol(Protocol):
    """What we read of a Forecaster."""

    @property
    def spec(self) -> Spec:
        """What it is."""

    @property
    def freq(self) -> str:
        """The frequency it learned."""

    @property
    def season(self) -> int:
        """Steps of a season."""

    @property
    def cutoff(self) -> Timestamp:
        """The last stamp of its data."""

    @property
    def encoding(self) -> Encoding:
        """How covariates and categories become numbers."""

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of its making."""

    @property
    def blend_weights(self) -> Mapping[str, float]:
        """The weights of the network and of statistical models in its forecasts; empty if they are the network's alone."""


class PredictorProtocol(Protocol):
    """What we ask of a Predictor."""

    @property
    def fitted_model(self) -> FittedModelProtocol:
        """What was learned."""

    def forecast_batch(
        self,
        series: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """One outcome for each series, in order; raises LevelOutOfRange for levels that it cannot give.

        Only asked with a `adaptive_state` where late actuals have taught something.
        """

    def sample_batch(
        self, series: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Sampled futures of each series, in order, from number `first_path` on; raises BadSpec if its head gives no distribution."""

    def forecast_scenarios(
        self,
        scenarios: Sequence[Series],
        horizon: int,
        *,
        levels: Sequence[float] = (),
        adaptive_state: AdaptiveState | None = None,
    ) -> list[Forecast | ForecasterError]:
        """The forecasts of one history with several futures of its covariates."""

    def sample_scenarios(
        self, scenarios: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[Float64[np.ndarray, "path horizon"] | ForecasterError]:
        """Sampled futures of the same, with common noise."""

    def truncate_history(self, series: Series) -> Series:
        """A history cut down to what forecasts still ask of it."""


class Release(BaseModel):
    """Which version of which model a folder holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    name: str
    version: str
    digest: str = Field(pattern="^[0-9a-f]{64}$")  # it names a folder

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The release of a release folder; raises BundleDamaged."""
        try:
            return cls.model_validate_json((folder / "release.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise BundleDamaged(
                f"Expected a release in {folder}; its release.json cannot be read ({error}).", where=str(folder)
            ) from error


RecordForecasts = Callable[["DeployedModel", Sequence[Series], Sequence[Forecast | ForecasterError]], object]
"""Told of forecasts that are served, with the histories they go on from."""


def _record_nothing(_: DeployedModel, __: Sequence[Series], ___: Sequence[Forecast | ForecasterError]) -> None:
    """Keeps no ledger."""


MeasureRollout = Callable[[int, float, int], object]
"""Told of series that were rolled together: how many, the seconds it took, and in how many something stood in for the network."""


def _measure_nothing(_: int, __: float, ___: int) -> None:
    """Measures nothing."""


@dataclass(frozen=True, eq=False)
class DeployedModel:
    """A model that answers."""

    release: Release
    predictor: PredictorProtocol
    card: str
    loaded_at: float = field(default_factory=time.monotonic)
    adaptive_state: AdaptiveState | None = None  # what late actuals have taught about its intervals
    record_forecasts: RecordForecasts = _record_nothing
    measure_rollout: MeasureRollout = _measure_nothing

    @property
    def info(self) -> dict[str, Any]:
        """Which model answers, as every answer says it: a ModelName; of a blend with its weights."""
        blend, facts = self.predictor.fitted_model.blend_weights, self.predictor.fitted_model.facts
        reliable = facts.get("reliable_horizon")
        return {
            **self.release.model_dump(),
            **({"blend": dict(blend)} if blend else {}),
            **({"reliable_horizon": reliable} if type(reliable) is int else {}),
        }

    @property
    def age_s(self) -> float:
        """Seconds since it was taken into use."""
        return time.monotonic() - self.loaded_at


LoadPredictor = Callable[[Path], PredictorProtocol]
OnModelChange = Callable[[str], None]  # "swapped" or "refused"


def load_bundle(folder: Path) -> PredictorProtocol:
    """The Predictor of a verified bundle, on the fastest engine there is for it; raises BundleError, or MissingPackage."""
    from forecaster.bundle import artifact  # only when there is something to load

    return artifact.load_predictor(folder)


class Slot:
    """One reference to the model in use, and a thread that renews it. Readers take `current` once per request."""

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
        self.rejection: status.BundleRejection | None = None  # of what the folder points to
        self._folder = folder
        self._load = load
        self._reload_s = reload_s
        self._retry_s = retry_s
        self._on_model_change = on_model_change
        self._measure_rollout = measure_rollout
        self._loaded_fingerprint: str | None = None  # the sign of what is in use
        self._rejected: tuple[str, float] | None = None  # what was refused, and when
        self._stop_event = threading.Event()
        self._thread: threading.Thread | None = None

    def with_folder(self, folder: Path) -> Slot:
        """Another slot that is watched as this one is."""
        return Slot(folder, load=self._load, reload_s=self._reload_s, retry_s=self._retry_s)

    def start(self) -> None:
        """Looks at the folder now and then, in a thread of its own, until `stop`."""
        self._thread = threading.Thread(target=self._watch, name="slot", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, without waiting for a bundle that is being loaded."""
        self._stop_event.set()

    def reload_if_changed(self) -> None:
        """Takes what the folder points to into use, if it is new and good; otherwise the old one goes on."""
        sign = _fingerprint(self._folder)
        if sign is None or sign == self._loaded_fingerprint:
            return
        if (
            self._rejected is not None
            and self._rejected[0] == sign
            and time.monotonic() - self._rejected[1] < self._retry_s
        ):
            return
        try:
            fresh = self._load_current()
            fail_point("reload.before_swap")
        except Exception as error:  # whatever a bundle does must not end the watch; the reason is logged
            self._rejected = (sign, time.monotonic())
            self.rejection = status.BundleRejection(status.describe_error(error, self._folder), time.monotonic())
            reason = error.message if isinstance(error, ForecasterError) else repr(error)
            log.error("a new bundle was refused, the old one goes on: %s", json.dumps(reason))
            self._on_model_change("refused")
            return
        self.current, self._loaded_fingerprint, self._rejected, self.rejection = fresh, sign, None, None
        log.info("in use: %s", fresh.release.model_dump_json())
        self._on_model_change("swapped")

    def _watch(self) -> None:
        while True:
            self.reload_if_changed()
            if self._stop_event.wait(self._reload_s):
                return

    def _load_current(self) -> DeployedModel:
        folder = (self._folder / "current").resolve(strict=True)
        release, bundle = Release.load(folder), folder / "bundle"
        _validate_digest(bundle, release)
        predictor = self._load(bundle)
        _smoke_test(predictor)
        return DeployedModel(
            release, predictor, (bundle / "card.md").read_text(encoding="utf-8"), measure_rollout=self._measure_rollout
        )


@contextmanager
def staging(slot: Path) -> Iterator[Path]:
    """A folder inside the slot to fetch a bundle into; gone afterwards."""
    releases = slot / "releases"
    releases.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=releases, prefix=".staging-") as folder:
        yield Path(folder)


def publish(slot: Path, bundle: Path, release: Release) -> None:
    """Makes a verified bundle the current one. A kill at any moment leaves the old or the new one current.

    Args:
        slot: The slot's folder.
        bundle: A folder inside `staging(slot)`; it is moved.
        release: What it is; raises BundleDamaged if the bundle has another digest.
    """
    _validate_digest(bundle, release)
    folder = slot / "releases" / release.digest
    if not (folder / "release.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        with atomic.create_folder(folder) as draft:
            bundle.rename(draft / "bundle")
            (draft / "release.json").write_text(release.model_dump_json())
    else:  # back to a release that is still here, perhaps under another version
        atomic.write_text(folder / "release.json", release.model_dump_json())
    _switch_current(slot, folder)


def restore_release(slot: Path, release: Release) -> None:
    """Makes a release that the slot still has the current one, as it was; a kill leaves the old or the new one current."""
    folder = slot / "releases" / release.digest
    atomic.write_text(folder / "release.json", release.model_dump_json())  # the last used, for `prune_releases`
    _switch_current(slot, folder)


def _switch_current(slot: Path, folder: Path) -> None:
    link = slot / f".current-{folder.name[:16]}"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.relative_to(slot))
    fail_point("reload.staged")
    link.replace(slot / "current")
    fail_point("reload.linked")
    atomic.sync_folder(slot)


def current_release(slot: Path) -> Release | None:
    """What is current in the slot, if anything readable is."""
    try:
        return Release.load((slot / "current").resolve(strict=True))
    except (OSError, BundleDamaged):
        return None


def bundle_path(slot: Path, release: Release) -> Path:
    """The folder with the files of a release that is in the slot."""
    return slot / "releases" / release.digest / "bundle"


def validate_release(slot: Path, release: Release, load: LoadPredictor = load_bundle) -> None:
    """Loads a release of the slot as a worker does; raises BundleError, or MissingPackage, where a worker would refuse it."""
    bundle = bundle_path(slot, release)
    _validate_digest(bundle, release)
    load(bundle)


def prune_releases(slot: Path, *, keep: int) -> None:
    """Removes all releases but the current one and the last used, `keep` in all."""
    for folder in _inactive_releases(slot)[keep - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)


def previous_release(slot: Path, name: str) -> Release | None:
    """The release of this model that was current before, if the slot still has it."""
    for folder in _inactive_releases(slot):
        try:
            release = Release.load(folder)
        except BundleDamaged:
            continue
        if release.name == name and release.digest == folder.name:
            return release
    return None


def _inactive_releases(slot: Path) -> list[Path]:
    """The folders of releases that are not current, the last used first."""
    current = (slot / "current").resolve()
    others = [
        folder
        for folder in (slot / "releases").glob("[!.]*")
        if folder.is_dir() and folder != current and (folder / "release.json").exists()
    ]
    return sorted(others, key=lambda folder: (folder / "release.json").stat().st_mtime_ns, reverse=True)


def _fingerprint(slot: Path) -> str | None:
    """What changes when the slot does: two small reads; None if nothing is there."""
    try:
        return ((slot / "current").resolve(strict=True) / "release.json").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _validate_digest(bundle: Path, release: Release) -> None:
    from forecaster.bundle import artifact

    found = artifact.compute_bundle_digest(bundle)
    if found != release.digest:
        raise BundleDamaged(
            f"Expected the bundle {release.digest} in {bundle}; found {found}. Publish it again.", where=str(bundle)
        )


def _smoke_test(predictor: PredictorProtocol) -> None:
    """The first rollout of a model is slow; it is made here, and must be finite."""
    learned = predictor.fitted_model
    start = timestamp_at(build_timestamps(synthetic_start(learned.freq), freq=learned.freq, steps=1), 0)
    steps = learned.spec.context
    plain = 100 + np.sin(np.arange(steps, dtype=np.float64))
    columns = _typical_covariates(learned, steps + learned.spec.horizon)
    channels = dict.fromkeys(learned.spec.channels, plain)
    history = Series("warm-up", start, learned.freq, plain, columns, channels=channels)
    outcome = predictor.forecast_batch([history], learned.spec.horizon)[0]
    if isinstance(outcome, ForecasterError):
        raise outcome
    if not np.isfinite(outcome.mean).all():
        raise BundleDamaged("Expected finite forecasts of a plain history; found others. Train again.", where="warm-up")


def _typical_covariates(fitted_model: FittedModelProtocol, steps: int) -> dict[str, np.ndarray]:
    """Covariates as ordinary as can be: means, and the first category of each."""
    means = {name: np.full(steps, mean) for name, (mean, _) in fitted_model.encoding.numeric.items()}
    known = fitted_model.encoding.categories.items()
    return means | {name: np.full(steps, (*values, "")[0], dtype=object) for name, values in known}
