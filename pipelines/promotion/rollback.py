"""Rollback to the previous champion. It must be fast, so nothing here imports training, plotting or model loading."""

from __future__ import annotations

from forecaster.registry.registry import BundleVersion, Registry
from forecaster.storage.failpoints import fail_point
from pipelines.promotion.audit_log import AuditLog
from pipelines.settings import Root


def roll_back(name: str, root: Root) -> BundleVersion:
    """Makes the previous champion the champion again, and the champion the previous one; needs no training and no data.

    Two rollbacks restore the original state. Raises NoSuchModel if there is no previous champion.
    """
    registry = Registry(root.store_uri)
    return registry.roll_back(name, on_promoted=AuditLog(root.audit_log, registry).record_rollback)


def record_local_rollback(
    current: BundleVersion, previous: BundleVersion, root: Root, *, since: str, is_undo: bool
) -> None:
    """Records in the audit log that a server was rolled back without the registry, or that this was undone."""
    AuditLog(root.audit_log).record_local_rollback(current, previous, since=since, is_undo=is_undo)
    fail_point("local.audited")
