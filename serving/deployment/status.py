"""How a server stands to the registry it follows: what the follower leaves in the slot for workers to tell.

Workers never ask the registry. The follower writes `follower.json` after every look; what is there is as old as it says.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forecaster.errors import ForecasterError, RegistryError

_FILE_NAME = "follower.json"
_STALE_AFTER_S = 60.0  # beyond the usual pause: a registry that is slow to say no takes some of it


class FollowerState(BaseModel):
    """What the follower knows of itself; moments are those of the clock on the wall, for it is another process that reads.

    Attributes:
        looked_at: When the last look ended; None before the first.
        reached_at: When the registry last answered.
        trouble: Why the slot is not what the registry says; None where it is.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    looked_at: float | None = None
    reached_at: float | None = None
    trouble: str | None = None


class FollowerStatus(BaseModel):
    """The process that follows the registry."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    looked_s: float | None = Field(description="seconds since it last looked; null: not yet")
    reached_s: float | None = Field(description="seconds since the registry last answered it; null: never")
    behind: str | None = Field(
        description="why the model in use may not be the registry's; null: it is, or was at the last look"
    )


class BundleRejectionStatus(BaseModel):
    """A bundle that this worker refused; the model before it goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    reason: str
    age_s: float


class BundleRejection(NamedTuple):
    """The same, while it is remembered; `rejected_at` is of the monotonic clock."""

    reason: str
    rejected_at: float

    def to_status(self) -> BundleRejectionStatus:
        """As it is answered."""
        return BundleRejectionStatus(reason=self.reason, age_s=round(time.monotonic() - self.rejected_at, 3))


def write_follower_state(slot: Path, state: FollowerState) -> None:
    """Leaves word in the slot: old or new, and not synced, for it is written every few seconds."""
    slot.mkdir(parents=True, exist_ok=True)
    draft = slot / f".{_FILE_NAME}.{os.getpid()}"
    draft.write_text(state.model_dump_json(), encoding="utf-8")
    draft.replace(slot / _FILE_NAME)


def read_follower_state(slot: Path) -> FollowerState:
    """What the follower left; nothing, where that cannot be read."""
    try:
        return FollowerState.model_validate_json((slot / _FILE_NAME).read_bytes())
    except (OSError, ValidationError):
        return FollowerState()


def compute_follower_status(slot: Path, *, poll_s: float) -> FollowerStatus:
    """How far the follower is; one small read, of the disk alone."""
    standing, now = read_follower_state(slot), time.time()
    looked, reached = (
        None if moment is None else round(max(0.0, now - moment), 3)
        for moment in (standing.looked_at, standing.reached_at)
    )
    behind = standing.trouble
    if looked is None:
        behind = "the follower has not looked yet"
    elif looked > poll_s + _STALE_AFTER_S:
        behind = f"the follower has not looked for {looked:.0f} s"
    return FollowerStatus(looked_s=looked, reached_s=reached, behind=behind)


def describe_error(error: Exception, slot: Path) -> str:
    """Why something was refused, for people who may not see our paths, addresses and tracebacks: those are in the log."""
    if isinstance(error, RegistryError):  # its message may hold the registry's address, and that a password
        return error.code
    if isinstance(error, ForecasterError):
        return f"{error.code}: {error.message.replace(str(slot), 'slot')}"
    return type(error).__name__
