"""Whether a model in use needs attention: what its ledger of served forecasts says beside what it promised."""

from __future__ import annotations

from datetime import datetime

from pipelines.settings import Root


def attention(root: Root, name: str, *, url: str | None = None, since: datetime | None = None) -> list[str]:
    """Why the champion of a registered model should be trained again; empty if nothing says so.

    Args:
        root: Where state lives; its service's ledger is looked at.
        name: The registered model.
        url: Another ledger.
        since: Forecasts made before are left out; a stamp without a zone is in UTC.
    Raises:
        NoSuchModel: nothing of that name is champion.
        LedgerError: there is a ledger, and it cannot be read.
    """
    raise NotImplementedError
