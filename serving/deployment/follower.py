"""Keeps the slot at the version of a registry alias, in its own process: `python -m serving.deployment.follower`.

For a registry with an HTTP address the process only polls, and imports neither MLflow nor torch: a child process fetches and
verifies a new version, and its memory is returned when it ends. For other stores one process does both. Of the followers that
share a slot one polls; the others wait for a lock.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from forecaster.errors import BundleError, MissingPackage, NoSuchModel
from forecaster.registry.rest_client import RestClient
from forecaster.registry.version import BundleVersion
from forecaster.storage import locks
from forecaster.storage.addresses import redact_addresses
from forecaster.storage.failpoints import fail_point
from forecaster.storage.secret_files import InvalidSecret, load_secret_files
from serving import log_format
from serving.deployment import local_rollback, releases, status
from serving.deployment.launcher import LAUNCHER_VARIABLE, end_with_launcher
from serving.deployment.releases import Release
from serving.settings import Settings, describe_errors

_GRACE_S = 10.0  # to remove a staging folder after the launcher was killed
_MAX_DELAY_S = 30.0  # between polls of a registry that does not respond, unless `poll_s` is longer
_JITTER = 0.2  # of the time between polls, so that the followers of many servers do not poll at the same time
_LOCK_NAME = ".follower.lock"
log = logging.getLogger("serving.deployment.follower")  # also when this file is the main program


class AliasReader(Protocol):
    """The part of `Registry` and of `RestClient` that polls."""

    def resolve(self, name: str, alias: str) -> BundleVersion:
        """Returns the version of an alias."""


class RegistryClient(AliasReader, Protocol):
    """The part of `Registry` that deploys."""

    def fetch(self, version: BundleVersion, into: Path) -> Path:
        """Copies the bundle of a version to a new folder, and returns the folder."""


VerifyBundle = Callable[[Path], object]
InstallVersion = Callable[[BundleVersion], str | None]
"""Deploys a version to the slot; returns why its bundle was rejected, or None if it was deployed. Raises any other error."""


class InstallFailed(Exception):
    """A version could not be deployed, for a reason other than its bundle."""


class InstallReport(BaseModel):
    """What a child process reports to the follower: why the bundle was rejected, or what else failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rejection: str | None = None
    failure: str | None = None


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


def find_update(registry: AliasReader, target: FollowTarget) -> BundleVersion | None:
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


def restore_version(version: BundleVersion, target: FollowTarget) -> bool:
    """Makes a version current whose verified bundle the slot still has, as after a rollback; returns whether it has it."""
    release = _to_release(version)
    if not (target.slot / "releases" / release.digest / "release.json").exists():
        return False
    releases.restore_release(target.slot, release)
    log.info("restored: %s", release.model_dump_json())
    return True


def install_or_reject(
    registry: RegistryClient,
    version: BundleVersion,
    target: FollowTarget,
    *,
    verify: VerifyBundle,
) -> str | None:
    """Deploys a version as `install_version` does; logs and returns why its bundle was rejected, or None if it was deployed."""
    try:
        install_version(registry, version, target, verify=verify)
    except (BundleError, MissingPackage) as error:
        log.error("a bundle was rejected, the slot is unchanged: %s", error.message)
        return status.describe_error(error, target.slot)
    return None


def compute_delay(poll_s: float, *, failures: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Returns the seconds until the next poll: about `poll_s`, and twice as long after every failure in a row.

    `/readyz` reports a follower as silent after `poll_s` and a minute, so the delay stays below that.
    """
    delay_s = min(poll_s * 2.0 ** min(failures, 30), max(poll_s, _MAX_DELAY_S))
    return delay_s * uniform(1 - _JITTER, 1 + _JITTER)


def follow(
    connect: Callable[[], AliasReader],
    target: FollowTarget,
    *,
    install: InstallVersion,
    poll_s: float,
    retry_s: float,
    sleep: Callable[[float], object] = time.sleep,
) -> NoReturn:
    """Polls the registry forever, with one request each; failures are logged and retried, a rejected bundle only after `retry_s`.

    After every poll the follower writes its state to the slot.

    Args:
        connect: Returns a client of the registry; called again until it succeeds.
        target: What to follow, and the slot to deploy to.
        install: Deploys a version that the slot does not have.
        poll_s: Seconds between polls.
        retry_s: Seconds before a rejected bundle is tried again.
        sleep: Waits until the next poll.
    """
    registry: AliasReader | None = None
    rejected: BundleVersion | None = None
    rejected_at = 0.0
    rejection: str | None = None  # why the version of the alias was rejected
    reached_at = status.read_follower_state(target.slot).reached_at
    failures = 0
    while True:
        trouble: str | None = None
        try:
            registry = registry or connect()
            version = find_update(registry, target)
            reached_at = time.time()
            if version is None or version != rejected:
                rejection = rejected = None
            if version is not None and (rejected is None or time.monotonic() - rejected_at > retry_s):
                rejection = None if restore_version(version, target) else install(version)
                rejected, rejected_at = (None if rejection is None else version), time.monotonic()
            rollback = local_rollback.read_rollback(target.slot)
            trouble = rejection or (None if rollback is None else rollback.description)
            failures = 0
        except NoSuchModel as error:
            reached_at, failures, trouble = time.time(), 0, status.describe_error(error, target.slot)
            log.info("nothing to follow yet: %s", error.message)
        except Exception as error:  # the registry is down, a disk is full: the server keeps the deployed model
            rejected, failures = None, failures + 1
            reason = str(error) if isinstance(error, InstallFailed) else status.describe_error(error, target.slot)
            trouble = f"the registry could not be followed ({reason})"
            log.warning("the registry could not be followed, trying again: %s", redact_addresses(repr(error)))
        _write_state(target.slot, status.FollowerState(looked_at=time.time(), reached_at=reached_at, trouble=trouble))
        sleep(compute_delay(poll_s, failures=failures))


def _write_state(slot_folder: Path, state: status.FollowerState) -> None:
    try:
        status.write_follower_state(slot_folder, state)
    except OSError as error:  # a full disk: the server runs on, and reports the age of the last state
        log.warning("the follower's state could not be written to the slot: %r", error)


class Installer(Protocol):
    """Connects to a registry to poll it, and deploys versions to the slot of one target."""

    def connect(self) -> AliasReader:
        """Returns a client of the registry."""

    def install(self, version: BundleVersion) -> str | None:
        """Deploys a version; see `InstallVersion`."""

    def stop(self) -> None:
        """Ends a deployment that is in progress."""


class LocalInstaller:
    """Polls with MLflow's client, and deploys in this process."""

    def __init__(self, settings: Settings, target: FollowTarget) -> None:
        """Connects to nothing yet."""
        assert settings.registry is not None
        self._address, self._target = settings.registry, target
        self._registry: RegistryClient | None = None

    def connect(self) -> RegistryClient:
        """Returns MLflow's client, always the same."""
        self._registry = self._registry or _connect_with_mlflow(self._address)
        return self._registry

    def install(self, version: BundleVersion) -> str | None:
        """Deploys a version; see `InstallVersion`."""
        return install_or_reject(self.connect(), version, self._target, verify=verify_on_all_engines)

    def stop(self) -> None:
        """Does nothing: the deployment ends with the process."""


class ChildInstaller:
    """Polls over HTTP, and deploys in child processes: `python -m serving.deployment.follower --once --report=FD`."""

    def __init__(self, settings: Settings, target: FollowTarget) -> None:
        """Prepares the environment of the children.

        Args:
            settings: The settings of the follower.
            target: The alias and the slot, which may be those of the shadow.
        """
        assert settings.registry is not None
        self._address: str = settings.registry
        settings = settings.model_copy(update={"alias": target.alias, "slot": target.slot})
        self._environment = {**os.environ, **settings.to_environment()}
        self._child: subprocess.Popen[bytes] | None = None

    def connect(self) -> RestClient:
        """Returns a client that sends one request for each poll."""
        return RestClient.from_environment(self._address, os.environ)

    def install(self, version: BundleVersion) -> str | None:
        """Deploys the version of the alias, which the child reads again, so it may be a later one; raises InstallFailed."""
        log.info("deploying version %s of '%s'", version.number, version.name)
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "serving.deployment.follower", "--once", f"--report={writing}"]
        # The child ends with this process, even if that is killed. It has a group of its own, which it ends then.
        environment = {**self._environment, LAUNCHER_VARIABLE: str(os.getpid())}
        with os.fdopen(reading, "rb") as reports:
            try:
                self._child = subprocess.Popen(  # noqa: S603
                    command, env=environment, pass_fds=[writing], start_new_session=True
                )
            finally:
                os.close(writing)
            content = reports.read()  # until the child ends
            code = self._child.wait()
        try:
            report = InstallReport.model_validate_json(content)
        except ValidationError:
            raise InstallFailed(f"the process that deploys a version ended with {code}") from None
        if report.failure is not None:
            raise InstallFailed(report.failure)
        return report.rejection

    def stop(self) -> None:
        """Ends a child that is running; it removes its staging folder."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(_GRACE_S / 2)


def main(argv: Sequence[str]) -> int:
    """Follows the registry until terminated; with --once, polls a single time and returns 1 if that failed.

    With --report=FD as well, what happened is also written as an `InstallReport` to an open file descriptor.
    """
    log_format.configure_logging()
    try:
        load_secret_files(os.environ)
        settings = Settings.from_environment(os.environ)
    except ValidationError as error:
        for line in describe_errors(error):
            log.error("%s", line)
        return 2
    except InvalidSecret as error:
        log.error("%s", error)
        return 2
    report_fds = [argument.removeprefix("--report=") for argument in argv if argument.startswith("--report=")]
    options = {argument for argument in argv if not argument.startswith("--report=")}
    if options - {"--once"} or settings.registry is None or settings.model is None:
        log.error(
            "usage: python -m serving.deployment.follower [--once], with FORECASTER_SERVING_REGISTRY and _MODEL set"
        )
        return 2
    signal.signal(signal.SIGTERM, _exit_on_signal)
    target = FollowTarget(settings.model, settings.alias, settings.slot, settings.keep)
    if report_fds:
        end_with_launcher(os.environ, grace_s=_GRACE_S)
    if options:
        report = _follow_once(settings.registry, target)
        for fd in report_fds:
            with os.fdopen(int(fd), "w", encoding="utf-8") as reports:
                reports.write(report.model_dump_json())
        return 0 if report == InstallReport() else 1
    end_with_launcher(os.environ, grace_s=_GRACE_S)
    with lock_slot(settings.slot):
        _follow_all(settings, target)
    return 0


def _follow_all(settings: Settings, target: FollowTarget) -> None:
    address = settings.registry
    assert address is not None
    targets = [target]
    if settings.shadow_slot is not None:
        targets.append(target._replace(alias=settings.shadow, slot=settings.shadow_slot))
    installer_class = ChildInstaller if RestClient.supports(address, os.environ) else LocalInstaller
    installers: list[Installer] = [installer_class(settings, each) for each in targets]

    def follow_target(target: FollowTarget, installer: Installer) -> NoReturn:
        follow(
            installer.connect,
            target,
            install=installer.install,
            poll_s=settings.poll_s,
            retry_s=settings.retry_s,
        )

    try:
        # The shadow has its own thread, so that no failure affects the model in use.
        for shadow in zip(targets[1:], installers[1:], strict=True):
            threading.Thread(target=follow_target, args=shadow, name="shadow", daemon=True).start()
        follow_target(targets[0], installers[0])
    finally:
        for installer in installers:
            installer.stop()


def _follow_once(address: str, target: FollowTarget) -> InstallReport:
    try:
        registry = _connect_with_mlflow(address)
        version = find_update(registry, target)
        if version is None:
            return InstallReport()
        return InstallReport(rejection=install_or_reject(registry, version, target, verify=verify_on_all_engines))
    except Exception as error:  # reported in one line, because --once is run by hand
        log.error("the slot is unchanged: %s", redact_addresses(str(error)))
        return InstallReport(failure=status.describe_error(error, target.slot))


@contextmanager
def lock_slot(slot: Path) -> Iterator[None]:
    """Waits until no other follower of the slot polls; a killed follower releases the lock."""
    path = slot / _LOCK_NAME
    try:
        try:
            lock = locks.open_locked(path)
        except BlockingIOError:
            log.info("another process follows the registry for this slot; this one waits, and takes over when it ends")
            lock = locks.open_locked(path, timeout_s=None)
    except OSError as error:  # a file system without locks, or a full disk
        log.warning("the slot cannot be locked, so every follower of it polls the registry: %r", error)
        yield
        return
    with lock:
        yield


def _connect_with_mlflow(address: str) -> RegistryClient:
    from forecaster.registry.registry import Registry  # the only use of MLflow in serving, and only in this process

    return Registry(address)


def _to_release(version: BundleVersion) -> Release:
    return Release(name=version.name, version=version.number, digest=version.digest)


def _exit_on_signal(_: int, __: FrameType | None) -> NoReturn:
    raise SystemExit(0)  # an exception, so that the staging folder is removed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
