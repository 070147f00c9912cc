"""Going back, which is wanted in a hurry: nothing here imports what trains, draws or loads a model."""

from __future__ import annotations

from forecaster.registry.registry import BundleVersion, Registry
from forecaster.storage.failpoints import fail_point
from pipelines.promotion.audit_log import AuditLog
from pipelines.settings import Root


def roll_back(name: str, root: Root) -> BundleVersion:
    """Makes the former the champion again, and the champion the former; takes no training and no data.

    Rolled back twice, it is as before. Raises NoSuchModel where there is no former.
    """
    return Registry(root.store_uri).roll_back(name, on_promoted=AuditLog(root.audit_log).record_rollback)


def record_local_rollback(
    current: BundleVersion, previous: BundleVersion, root: Root, *, since: str, is_undo: bool
) -> None:
    """Tells the audit log that one server was moved to a version without the registry, or that this was undone."""
    AuditLog(root.audit_log).record_local_rollback(current, previous, since=since, is_undo=is_undo)
    fail_point("local.audited")
