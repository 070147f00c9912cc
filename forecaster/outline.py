"""What a rollout must know of a network besides its weights: it follows from the specification alone."""

from __future__ import annotations

from typing import NamedTuple, Self

from forecaster.spec import Reads, Spec


class Outline(NamedTuple):
    """How a network reads and tells.

    Attributes:
        segment: Time points that one step of the recurrence reads.
        block: Time points that the decoder gives in one go; they are then fed back, segment by segment.
        back: How many of the latest values lags and base look at (1 at least).
        lead: Steps that a window has before its context, for lags and base to look at; 0 if they need none.
        context: Steps of history it was trained to start from.
        reads: Whether a forecast starts from the last of them, or from the whole history.
        targets: What it reads and foretells of a row: y, and after it the channels.
        noise: Uniforms that one draw of its head takes; 0: nothing can be drawn.
    """

    segment: int
    block: int
    back: int
    lead: int
    context: int
    reads: Reads
    targets: int
    noise: int

    @classmethod
    def of(cls, spec: Spec, *, season: int) -> Self:
        """That of the networks of a specification, for data of a season."""
        seen = {"zero": 0, "last": 1, "seasonal_naive": season, "linear": season + 1}[spec.base]  # by the base
        back = max(1, seen, *spec.lags)
        lead = 0 if back == 1 else back
        targets = 1 + len(spec.channels)
        return cls(spec.segment, spec.block, back, lead, spec.context, spec.reads, targets, spec.head.noise)

    def shown(self, longest: int) -> int:
        """Steps of a window that shows the network all it reads of histories of up to `longest` steps.

        A whole history has nothing before it: the lead is padding, and so is the rest of its first segment.
        """
        return self.lead + (self.context if self.reads == "window" else -(-longest // self.segment) * self.segment)

    def whole(self, horizon: int) -> int:
        """The horizon, rounded up to whole blocks."""
        return -(-horizon // self.block) * self.block
