"""The commands about versions: register, promote, rollback, audit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from forecaster.errors import BaseMoved, InputError, NoSuchModel, RegistryError
from pipelines.commands.console import warn
from pipelines.commands.options import RootOptions

if TYPE_CHECKING:
    from forecaster.registry.registry import BundleVersion
    from pipelines.settings import Root

_ROOT_OPTIONS = RootOptions()


def register(bundle: Path, *, where: RootOptions = _ROOT_OPTIONS) -> None:
    """Puts a bundle into the registry, as the challenger of its name.

    Parameters
    ----------
    bundle
        The folder that train wrote.
    """
    from forecaster.registry.registry import CHALLENGER, Registry
    from pipelines.promotion.promote import register_bundle as run

    root = where.open_existing_root()
    version = run(bundle, root)
    Registry(root.store_uri).set_alias(version, CHALLENGER)
    print(f"{version.name} version {version.number} is the challenger ({version.digest[:12]})")


def promote(
    name: str,
    *,
    version: str | None = None,
    force: bool = False,
    reason: str | None = None,
    policy: Path | None = None,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Makes the challenger the champion, which the service follows; the old champion becomes the former.

    Parameters
    ----------
    name
        The registered model.
    version
        A version's number, instead of the challenger.
    force
        Promote even what did not beat seasonal naive in its own backtest, was never tested, or was refused by the gate.
    reason
        Why, for the audit log; needed where the gate refused the version.
    policy
        The gate's bounds in YAML (README: What the gate asks); of those that need no data, seasonal naive, size and freshness.
    """
    from pipelines.promotion.policy import read_policy
    from pipelines.promotion.promote import promote_version as run

    promoted = run(
        name, where.open_existing_root(), version_number=version, force=force, reason=reason, policy=read_policy(policy)
    )
    print(f"{promoted.name} version {promoted.number} is the champion ({promoted.digest[:12]})")


def rollback(name: str, *, local: bool = False, undo: bool = False, where: RootOptions = _ROOT_OPTIONS) -> None:
    """Makes the former champion the champion again, in seconds and without a training; once more undoes it.

    Parameters
    ----------
    name
        The registered model.
    local
        Ask no registry, which may be down or read-only: the server of this root (or of FORECASTER_SERVING_SLOT) goes back to what
        it served before, and stays there until the registry names another version than the one that was left.
    undo
        With --local: end that; the registry is followed again.
    """
    if undo and not local:
        raise InputError("Expected --undo beside --local; found it alone. A rollback is undone by another one.")
    if local:
        now, before = _roll_back_locally(name, where.open_root(), undo=undo)
        print(f"{now.name} version {now.number} answers here instead of {before.number} ({now.digest[:12]})")
        return
    from pipelines.promotion.rollback import roll_back as run

    try:
        version = run(name, where.open_existing_root())
    except (NoSuchModel, BaseMoved):
        raise
    except RegistryError:
        warn(f"this server alone, without the registry: forecaster rollback {name} --local")
        raise
    print(f"{version.name} version {version.number} is the champion again ({version.digest[:12]})")


def _roll_back_locally(name: str, root: Root, *, undo: bool) -> tuple[BundleVersion, BundleVersion]:
    """Moves the server of a root; answers the version that is in use now, and the one before."""
    told = json.loads(_call_serving_pin(name, root, *(["--undo"] if undo else [])))
    from forecaster.registry.registry import BundleVersion
    from pipelines.promotion.rollback import record_local_rollback

    back, left = (
        BundleVersion(one["name"], one["version"], one["digest"], None) for one in (told["release"], told["instead_of"])
    )
    now, before = (left, back) if undo else (back, left)
    record_local_rollback(now, before, root, since=told["at"], is_undo=undo)
    if undo:  # last, so that one that was cut short can be repeated
        _call_serving_pin(name, root, "--lift")
    return now, before


def _call_serving_pin(name: str, root: Root, *options: str) -> str:
    """By name and not by import, as `serve`; what it says against it is on the terminal already."""
    slot = os.environ.get("FORECASTER_SERVING_SLOT") or str(root.slot)
    words = [sys.executable, "-m", "serving.deployment.local_rollback", name, slot, *options]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode:
        sys.exit(max(done.returncode, 1))
    return done.stdout


def audit(name: str | None = None, *, where: RootOptions = _ROOT_OPTIONS) -> None:
    """Prints who was made champion, when and why, and checks that no line is missing or altered; ends with 1 if one is.

    Parameters
    ----------
    name
        Lines of one registered model alone; the whole log is checked in any case.
    """
    from pipelines.promotion.promote import verify_audit_log

    found = verify_audit_log(where.open_existing_root(), name)
    for line in found.entries:
        print(line)
    for fault in found.faults:
        warn(fault)
    print(f"{len(found.entries)} lines, {'all in their places' if not found.faults else f'{len(found.faults)} faults'}")
    if found.faults:
        sys.exit(1)
