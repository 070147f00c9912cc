"""The commands `forecaster register`, `promote`, `rollback` and `audit`, which change or list registered versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forecaster.errors import BaseMoved, InputError, NoSuchModel, RegistryError
from pipelines.commands.console import warn
from pipelines.commands.options import RootOptions

if TYPE_CHECKING:
    from forecaster.registry.registry import BundleVersion
    from pipelines.settings import Root

_ROOT_OPTIONS = RootOptions()


def register(bundle: Path, *, root_options: RootOptions = _ROOT_OPTIONS) -> None:
    """Registers a bundle as a new version of its model, and makes it the challenger.

    Parameters
    ----------
    bundle
        The bundle folder that train wrote, here or on another machine.
    """
    from forecaster.registry.registry import CHALLENGER, Registry
    from pipelines.promotion.promote import register_bundle

    root = root_options.open_root()
    version = register_bundle(bundle, root)
    Registry(root.store_uri).set_alias(version, CHALLENGER)
    print(f"{version.name} version {version.number} is the challenger ({version.digest[:12]})")


def promote(
    name: str,
    *,
    version: str | None = None,
    force: Annotated[bool, Parameter(show_default=False)] = False,
    reason: str | None = None,
    policy: Path | None = None,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Makes the challenger the champion, which the service then serves; the old champion becomes the previous champion.

    Parameters
    ----------
    name
        The registered model.
    version
        The number of the version to promote; by default the challenger.
    force
        Promote even a version that a baseline beat in its backtest, was never tested, or was rejected by the gate.
    reason
        Reason for the audit log; required if the gate rejected the version.
    policy
        Thresholds of the promotion gate in YAML (see docs/retraining.md). Only the checks that need no data apply: baselines,
        size, freshness.
    """
    from pipelines.promotion.policy import read_policy
    from pipelines.promotion.promote import promote_version

    promoted = promote_version(
        name,
        root_options.open_existing_root(),
        version_number=version,
        force=force,
        reason=reason,
        policy=read_policy(policy),
    )
    print(f"{promoted.name} version {promoted.number} is the champion ({promoted.digest[:12]})")


def rollback(
    name: str,
    *,
    local: Annotated[bool, Parameter(show_default=False)] = False,
    undo: Annotated[bool, Parameter(show_default=False)] = False,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Makes the previous champion the champion again, without a training; a second rollback undoes the first.

    Parameters
    ----------
    name
        The registered model.
    local
        Roll back without the registry, which may be down or read-only: the service of this root (or of
        FORECASTER_SERVING_SLOT) serves its previous version until the registry has another champion than the one rolled back.
    undo
        With --local: end the local rollback; the service follows the registry again.
    """
    if undo and not local:
        raise InputError(
            "Expected --undo together with --local; found --undo alone. Undo a rollback in the registry with another rollback."
        )
    if local:
        current, previous = _roll_back_locally(name, root_options.open_root(), undo=undo)
        print(
            f"{current.name} version {current.number} is served here instead of version {previous.number} ({current.digest[:12]})"
        )
        return
    from pipelines.promotion.rollback import roll_back

    try:
        version = roll_back(name, root_options.open_existing_root())
    except (NoSuchModel, BaseMoved):
        raise
    except RegistryError:
        warn(f"to roll back this service only, without the registry: forecaster rollback {name} --local")
        raise
    print(f"{version.name} version {version.number} is the champion again ({version.digest[:12]})")


def _roll_back_locally(name: str, root: Root, *, undo: bool) -> tuple[BundleVersion, BundleVersion]:
    """Rolls back the service of a root; returns the version that is served now, and the previous one."""
    pin = json.loads(_call_serving_pin(name, root, *(["--undo"] if undo else [])))
    from forecaster.registry.registry import BundleVersion
    from pipelines.promotion.rollback import record_local_rollback

    pinned, replaced = (
        BundleVersion(release["name"], release["version"], release["digest"], None)
        for release in (pin["release"], pin["instead_of"])
    )
    current, previous = (replaced, pinned) if undo else (pinned, replaced)
    record_local_rollback(current, previous, root, since=pin["at"], is_undo=undo)
    if undo:  # last, so that an interrupted call can be repeated
        _call_serving_pin(name, root, "--lift")
    return current, previous


def _call_serving_pin(name: str, root: Root, *options: str) -> str:
    """Runs the local rollback of serving, by name rather than imported (as `serve`); its errors are on the terminal already."""
    slot = os.environ.get("FORECASTER_SERVING_SLOT") or str(root.slot)
    command = [sys.executable, "-m", "serving.deployment.local_rollback", name, slot, *options]
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if completed.returncode:
        sys.exit(max(completed.returncode, 1))
    return completed.stdout


def audit(
    name: str | None = None,
    *,
    adopt: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Prints the audit log (champions, times and reasons), and verifies it.

    The command exits with 1 if a line is missing or altered, if an update was lost, or if the log does not agree with the
    registry.

    Parameters
    ----------
    name
        Print the lines of one registered model only; the whole log is verified in any case.
    adopt
        First start the log of every champion that the registry has no seal of: one that was promoted without this log, or by an
        earlier version. With NAME, of this model only.
    """
    from pipelines.promotion.promote import adopt_champions, verify_audit_log

    root = root_options.open_existing_root()
    if adopt:
        for champion in adopt_champions(root, name):
            print(f"{champion.name} version {champion.number} is adopted")
    log = verify_audit_log(root, name)
    for entry in log.entries:
        print(entry)
    for message in (*log.faults, *log.notes):
        warn(message)
    print(f"{len(log.entries)} lines, {f'{len(log.faults)} faults' if log.faults else 'none missing or altered'}")
    if log.faults:
        sys.exit(1)
