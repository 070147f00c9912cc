"""Going back, which is wanted in a hurry: nothing here imports what trains, draws or loads a model."""

from __future__ import annotations

from forecaster.registry.registry import Registry, Version
from forecaster.storage.failpoints import point
from pipelines.promotion.audit_log import AuditLog
from pipelines.settings import Root


def roll_back(name: str, root: Root) -> Version:
    """Makes the former the champion again, and the champion the former; takes no training and no data.

    Rolled back twice, it is as before. Raises NoSuchModel where there is no former.
    """
    return Registry(root.store).roll_back(name, record=AuditLog(root.audit).rolled_back)


def rolled_back_here(now: Version, before: Version, root: Root, *, since: str, undone: bool) -> None:
    """Tells the audit log that one server was moved to a version without the registry, or that this was undone."""
    AuditLog(root.audit).rolled_back_here(now, before, since=since, undone=undone)
    point("local.audited")
