"""Keeps the slot at the version of a registry alias, in its own process: `python -m serving.deployment.follower`."""

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

from pydantic import ValidationError

from forecaster.errors import BundleError, MissingPackage, NoSuchModel
from forecaster.storage.addresses import redact_addresses
from forecaster.storage.failpoints import fail_point
from serving import log_format
from serving.deployment import local_rollback, releases, status
from serving.deployment.launcher import end_with_launcher
from serving.deployment.releases import Release
from serving.settings import Settings, describe_errors

if TYPE_CHECKING:
    from forecaster.registry.registry import BundleVersion

_GRACE_S = 10.0  # to remove a staging folder after the launcher was killed
log = logging.getLogger(__name__)


class RegistryClient(Protocol):
    """The part of `Registry` that the follower uses."""

    def resolve(self, name: str, alias: str) -> BundleVersion:
        """Returns the version of an alias."""

    def fetch(self, version: BundleVersion, into: Path) -> Path:
        """Copies the bundle of a version to a new folder, and returns the folder."""


VerifyBundle = Callable[[Path], object]


def verify_on_all_engines(bundle: Path) -> None:
    """Loads a bundle on the engine that workers use, and on all that are installed. Raises BundleError or MissingPackage."""
    from forecaster.bundle import artifact

    artifact.verify_bundle(bundle)


class FollowTarget(NamedTuple):
    """The registered model and alias to follow, the slot to deploy it to, and the number of releases to keep."""

    name: str
    alias: str
    slot: Path
    keep: int


def find_update(registry: RegistryClient, target: FollowTarget) -> BundleVersion | None:
    """Returns the version of the alias; None if the slot has it already, or if it was rolled back locally.

    A local rollback ends when the registry names another version than it did then. Raises NoSuchModel.
    """
    version = registry.resolve(target.name, target.alias)
    # Read before the rollback, because a rollback is written before the slot changes.
    current = releases.current_release(target.slot)
    rollback = local_rollback.read_rollback(target.slot)
    if rollback is not None and rollback.instead_of == _to_release(version):
        return None
    if rollback is not None:
        local_rollback.remove_rollback(target.slot)
        log.info("the registry now names %s, which ends the local rollback: %s", version, rollback.description)
    return None if current == _to_release(version) else version


def install_version(
    registry: RegistryClient,
    version: BundleVersion,
    target: FollowTarget,
    *,
    verify: VerifyBundle = verify_on_all_engines,
) -> None:
    """Deploys a version to the slot. Raises BundleError if it is invalid, MissingPackage if this server cannot run it."""
    with releases.staging(target.slot) as draft:
        bundle = registry.fetch(version, draft / "bundle")
        fail_point("reload.fetched")
        verify(bundle)
        fail_point("reload.verified")
        releases.publish(target.slot, bundle, _to_release(version))
    releases.prune_releases(target.slot, keep=target.keep)
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
    """Polls the registry forever; failures are logged and retried, a rejected bundle only after `retry_s`.

    After every poll the follower writes its state to the slot.

    Args:
        connect: Returns a client of the registry; called again until it succeeds.
        target: What to follow, and the slot to deploy to.
        poll_s: Seconds between polls.
        retry_s: Seconds before a rejected bundle is tried again.
        verify: Loads a bundle; raises BundleError or MissingPackage to reject it.
        sleep: Waits for `poll_s` seconds.
    """
    registry: RegistryClient | None = None
    rejected: BundleVersion | None = None
    rejected_at = 0.0
    rejection: str | None = None  # why the version of the alias was rejected
    reached_at = status.read_follower_state(target.slot).reached_at
    while True:
        trouble: str | None = None
        try:
            registry = registry or connect()
            version = find_update(registry, target)
            reached_at = time.time()
            if version is None or version != rejected:
                rejection = None
            if version is not None and (version != rejected or time.monotonic() - rejected_at > retry_s):
                rejected, rejected_at = version, time.monotonic()
                install_version(registry, version, target, verify=verify)
                rejected = rejection = None
            rollback = local_rollback.read_rollback(target.slot)
            trouble = rejection or (None if rollback is None else rollback.description)
        except NoSuchModel as error:
            reached_at, trouble = time.time(), status.describe_error(error, target.slot)
            log.info("nothing to follow yet: %s", error.message)
        except (BundleError, MissingPackage) as error:
            rejection = trouble = status.describe_error(error, target.slot)
            log.error("a bundle was rejected, the slot is unchanged: %s", error.message)
        except Exception as error:  # the registry is down, a disk is full: the server keeps the deployed model
            rejected = None
            trouble = f"the registry could not be followed ({status.describe_error(error, target.slot)})"
            log.warning("the registry could not be followed, trying again: %s", redact_addresses(repr(error)))
        _write_state(target.slot, status.FollowerState(looked_at=time.time(), reached_at=reached_at, trouble=trouble))
        sleep(poll_s)


def _write_state(slot_folder: Path, state: status.FollowerState) -> None:
    try:
        status.write_follower_state(slot_folder, state)
    except OSError as error:  # a full disk: the server runs on, and reports the age of the last state
        log.warning("the follower's state could not be written to the slot: %r", error)


def main(argv: Sequence[str]) -> int:
    """Follows the registry until terminated; with --once, polls a single time and returns 1 if that failed."""
    log_format.configure_logging()
    try:
        settings = Settings.from_environment(os.environ)
    except ValidationError as error:
        for line in describe_errors(error):
            log.error("%s", line)
        return 2
    if set(argv) - {"--once"} or settings.registry is None or settings.model is None:
        log.error(
            "usage: python -m serving.deployment.follower [--once], with FORECASTER_SERVING_REGISTRY and _MODEL set"
        )
        return 2
    signal.signal(signal.SIGTERM, _exit_on_signal)
    end_with_launcher(os.environ, grace_s=_GRACE_S)
    target = FollowTarget(settings.model, settings.alias, settings.slot, settings.keep)
    address = settings.registry
    if "--once" not in argv:
        if settings.shadow_slot is not None:  # in its own thread, so that no failure affects the model in use
            shadow_target = target._replace(alias=settings.shadow, slot=settings.shadow_slot)
            threading.Thread(
                target=follow,
                args=(lambda: _connect_to_registry(address), shadow_target),
                kwargs={"poll_s": settings.poll_s, "retry_s": settings.retry_s},
                name="shadow",
                daemon=True,
            ).start()
        follow(lambda: _connect_to_registry(address), target, poll_s=settings.poll_s, retry_s=settings.retry_s)
    try:
        registry = _connect_to_registry(address)
        version = find_update(registry, target)
        if version is not None:
            install_version(registry, version, target)
    except Exception as error:  # reported in one line, because --once is run by hand
        log.error("the slot is unchanged: %s", redact_addresses(str(error)))
        return 1
    return 0


def _connect_to_registry(address: str) -> RegistryClient:
    from forecaster.registry.registry import Registry  # the only use of MLflow in serving, and only in this process

    return Registry(address)


def _to_release(version: BundleVersion) -> Release:
    return Release(name=version.name, version=version.number, digest=version.digest)


def _exit_on_signal(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(0)  # an exception, so that the staging folder is removed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
