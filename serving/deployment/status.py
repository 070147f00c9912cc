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

_FILE = "follower.json"
_SILENCE_S = 60.0  # beyond the usual pause: a registry that is slow to say no takes some of it


class Standing(BaseModel):
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


class FollowerAnswer(BaseModel):
    """The process that follows the registry."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    looked_s: float | None = Field(description="seconds since it last looked; null: not yet")
    reached_s: float | None = Field(description="seconds since the registry last answered it; null: never")
    behind: str | None = Field(
        description="why the model in use may not be the registry's; null: it is, or was at the last look"
    )


class RefusalAnswer(BaseModel):
    """A bundle that this worker refused; the model before it goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    reason: str
    age_s: float


class Refusal(NamedTuple):
    """The same, while it is remembered; `since` is of the monotonic clock."""

    reason: str
    since: float

    def told(self) -> RefusalAnswer:
        """As it is answered."""
        return RefusalAnswer(reason=self.reason, age_s=round(time.monotonic() - self.since, 3))


def write(slot: Path, standing: Standing) -> None:
    """Leaves word in the slot: old or new, and not synced, for it is written every few seconds."""
    slot.mkdir(parents=True, exist_ok=True)
    draft = slot / f".{_FILE}.{os.getpid()}"
    draft.write_text(standing.model_dump_json(), encoding="utf-8")
    draft.replace(slot / _FILE)


def read(slot: Path) -> Standing:
    """What the follower left; nothing, where that cannot be read."""
    try:
        return Standing.model_validate_json((slot / _FILE).read_bytes())
    except (OSError, ValidationError):
        return Standing()


def tell(slot: Path, *, poll_s: float) -> FollowerAnswer:
    """How far the follower is; one small read, of the disk alone."""
    standing, now = read(slot), time.time()
    looked, reached = (
        None if moment is None else round(max(0.0, now - moment), 3)
        for moment in (standing.looked_at, standing.reached_at)
    )
    behind = standing.trouble
    if looked is None:
        behind = "the follower has not looked yet"
    elif looked > poll_s + _SILENCE_S:
        behind = f"the follower has not looked for {looked:.0f} s"
    return FollowerAnswer(looked_s=looked, reached_s=reached, behind=behind)


def reason(error: Exception, slot: Path) -> str:
    """Why something was refused, for people who may not see our paths, addresses and tracebacks: those are in the log."""
    if isinstance(error, RegistryError):  # its message may hold the registry's address, and that a password
        return error.code
    if isinstance(error, ForecasterError):
        return f"{error.code}: {error.message.replace(str(slot), 'slot')}"
    return type(error).__name__
