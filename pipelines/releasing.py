"""The commands about versions: register, promote, rollback, audit."""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines.arguments import Where
from pipelines.terminal import warn

_WHERE = Where()


def register(bundle: Path, *, where: Where = _WHERE) -> None:
    """Puts a bundle into the registry, as the challenger of its name.

    Parameters
    ----------
    bundle
        The folder that train wrote.
    """
    from forecaster.registry import CHALLENGER, Registry
    from pipelines.releases import register as run

    root = where.existing()
    version = run(bundle, root)
    Registry(root.store).set_alias(version, CHALLENGER)
    print(f"{version.name} version {version.number} is the challenger ({version.digest[:12]})")


def promote(
    name: str,
    *,
    version: str | None = None,
    force: bool = False,
    reason: str | None = None,
    policy: Path | None = None,
    where: Where = _WHERE,
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
    from pipelines.policy import read_policy
    from pipelines.releases import promote as run

    promoted = run(name, where.existing(), number=version, force=force, reason=reason, policy=read_policy(policy))
    print(f"{promoted.name} version {promoted.number} is the champion ({promoted.digest[:12]})")


def rollback(name: str, *, where: Where = _WHERE) -> None:
    """Makes the former champion the champion again, in seconds and without a training; once more undoes it.

    Parameters
    ----------
    name
        The registered model.
    """
    from pipelines.releases import roll_back as run

    version = run(name, where.existing())
    print(f"{version.name} version {version.number} is the champion again ({version.digest[:12]})")


def audit(name: str | None = None, *, where: Where = _WHERE) -> None:
    """Prints who was made champion, when and why, and checks that no line is missing or altered; ends with 1 if one is.

    Parameters
    ----------
    name
        Lines of one registered model alone; the whole log is checked in any case.
    """
    from pipelines.releases import audited

    found = audited(where.existing(), name)
    for line in found.lines:
        print(line)
    for fault in found.faults:
        warn(fault)
    print(f"{len(found.lines)} lines, {'all in their places' if not found.faults else f'{len(found.faults)} faults'}")
    if found.faults:
        sys.exit(1)
