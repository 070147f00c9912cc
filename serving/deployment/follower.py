"""Keeps the slot at the version that a registry alias names, in its own process: `python -m serving.deployment.follower`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

from forecaster.errors import BundleError, MissingPackage, NoSuchModel
from forecaster.storage.failpoints import fail_point
from serving import log_format
from serving.deployment import local_rollback, slot, status
from serving.deployment.slot import Release
from serving.settings import Settings

if TYPE_CHECKING:
    from forecaster.registry.registry import BundleVersion

log = logging.getLogger(__name__)


class RegistryClient(Protocol):
    """What we ask of a Registry."""

    def resolve(self, name: str, alias: str) -> BundleVersion:
        """The version that an alias stands for."""

    def fetch(self, version: BundleVersion, into: Path) -> Path:
        """Copies the bundle of a version to a new folder."""


VerifyBundle = Callable[[Path], object]


def verify_on_all_engines(bundle: Path) -> None:
    """Loads a bundle as workers do, and on all other engines too. Raises BundleError, or MissingPackage."""
    from forecaster.bundle import artifact

    artifact.load_predictor(bundle)
    artifact.load_bundle(bundle)


class FollowTarget(NamedTuple):
    """What is followed, and where to."""

    name: str
    alias: str
    slot: Path
    keep: int


def find_update(registry: RegistryClient, target: FollowTarget) -> BundleVersion | None:
    """The version that the alias stands for, unless the slot has it already, or was rolled back from it here.

    A pin that the registry has overtaken is lifted. Raises NoSuchModel.
    """
    version = registry.resolve(target.name, target.alias)
    published = slot.current_release(target.slot)  # before the pin, which is written before the slot is changed
    pinned = local_rollback.read_rollback(target.slot)
    if pinned is not None and pinned.instead_of == _to_release(version):
        return None
    if pinned is not None:
        local_rollback.remove_rollback(target.slot)
        log.info("the registry names %s now: %s ends", version, pinned.description)
    return None if published == _to_release(version) else version


def install_version(
    registry: RegistryClient,
    version: BundleVersion,
    target: FollowTarget,
    *,
    verify: VerifyBundle = verify_on_all_engines,
) -> None:
    """Puts a version into the slot. Raises BundleError if it must not be served, MissingPackage if it cannot be here."""
    with slot.staging(target.slot) as draft:
        bundle = registry.fetch(version, draft / "bundle")
        fail_point("reload.fetched")
        verify(bundle)
        fail_point("reload.verified")
        slot.publish(target.slot, bundle, _to_release(version))
    slot.prune_releases(target.slot, keep=target.keep)
    log.info("published: %s", _to_release(version).model_dump_json())


def follow(
    connect: Callable[[], RegistryClient],
    target: FollowTarget,
    *,
    poll_s: float,
    retry_s: float,
    verify: VerifyBundle = verify_on_all_engines,
    sleep: Callable[[float], object] = time.sleep,
) -> NoReturn:
    """Looks now and then, forever; what fails is logged and tried again, a bad bundle not before `retry_s`.

    After every look it leaves word in the slot of how it stands.
    """
    store: RegistryClient | None = None
    refused: BundleVersion | None = None
    refused_at = 0.0
    refusal: str | None = None  # of the version that the alias stands for
    reached_at = status.read_follower_state(target.slot).reached_at
    while True:
        trouble: str | None = None
        try:
            store = store or connect()
            version = find_update(store, target)
            reached_at = time.time()
            if version is None or version != refused:
                refusal = None
            if version is not None and (version != refused or time.monotonic() - refused_at > retry_s):
                refused, refused_at = version, time.monotonic()
                install_version(store, version, target, verify=verify)
                refused = refusal = None
            pinned = local_rollback.read_rollback(target.slot)
            trouble = refusal or (None if pinned is None else pinned.description)
        except NoSuchModel as error:
            reached_at, trouble = time.time(), status.describe_error(error, target.slot)
            log.info("nothing to follow yet: %s", error.message)
        except (BundleError, MissingPackage) as error:
            refusal = trouble = status.describe_error(error, target.slot)
            log.error("a bundle was refused, the slot stays as it is: %s", error.message)
        except Exception as error:  # the registry is down, a disk is full: the server goes on with what it has
            refused = None
            trouble = f"the registry could not be followed ({status.describe_error(error, target.slot)})"
            log.warning("the registry could not be followed, trying again: %r", error)
        _write_state(target.slot, status.FollowerState(looked_at=time.time(), reached_at=reached_at, trouble=trouble))
        sleep(poll_s)


def _write_state(slot_folder: Path, state: status.FollowerState) -> None:
    try:
        status.write_follower_state(slot_folder, state)
    except OSError as error:  # a full disk: the server goes on, and tells how old the last word is
        log.warning("no word could be left in the slot: %r", error)


def main(argv: Sequence[str]) -> int:
    """Follows until it is ended; with --once, looks a single time, and answers 1 if that failed."""
    log_format.configure_logging()
    settings = Settings.from_environment(os.environ)
    if set(argv) - {"--once"} or settings.registry is None or settings.model is None:
        log.error(
            "usage: python -m serving.deployment.follower [--once], with FORECASTER_SERVING_REGISTRY and _MODEL set"
        )
        return 2
    signal.signal(signal.SIGTERM, _exit_on_signal)
    target = FollowTarget(settings.model, settings.alias, settings.slot, settings.keep)
    address = settings.registry
    if "--once" not in argv:
        if settings.shadow_slot is not None:  # of no consequence to the model in use, whatever becomes of it
            beside = target._replace(alias=settings.shadow, slot=settings.shadow_slot)
            pace = {"poll_s": settings.poll_s, "retry_s": settings.retry_s}
            threading.Thread(
                target=follow,
                args=(lambda: _connect_to_registry(address), beside),
                kwargs=pace,
                name="shadow",
                daemon=True,
            ).start()
        follow(lambda: _connect_to_registry(address), target, poll_s=settings.poll_s, retry_s=settings.retry_s)
    try:
        store = _connect_to_registry(address)
        version = find_update(store, target)
        if version is not None:
            install_version(store, version, target)
    except Exception as error:  # said in one line, for whoever runs this by hand
        log.error("the slot stays as it is: %s", error)
        return 1
    return 0


def _connect_to_registry(address: str) -> RegistryClient:
    from forecaster.registry.registry import Registry  # serving's one way to MLflow, and only in this process

    return Registry(address)


def _to_release(version: BundleVersion) -> Release:
    return Release(name=version.name, version=version.number, digest=version.digest)


def _exit_on_signal(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(0)  # as an exception, so that what is staged is cleared away


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
