"""The layout of the networks of a specification: the sizes of their input and output."""

from __future__ import annotations

from typing import NamedTuple, Self

from forecaster.spec.fields import InputMode
from forecaster.spec.specification import Spec

RUNNING_LAGS = 24  # latest values that the features of the running scale contain
RUNNING_CYCLES = 5  # seasons that a running seasonal index averages
LONG_CYCLES = 3  # long seasons that are averaged


def running_lookback(season: int, long_season: int | None = None) -> int:
    """Returns the number of latest values that the features and simple forecasts of the running scale read."""
    return max(RUNNING_LAGS + 1, (RUNNING_CYCLES + 1) * season, LONG_CYCLES * (long_season or 0) + season)


class Layout(NamedTuple):
    """The sizes of a network's input and output.

    Attributes:
        segment: Time points that one step of the recurrence reads.
        block: Time points that the decoder predicts at once; they are then fed back, segment by segment.
        lookback: The number of latest values that lags and base use (at least 1).
        pre_context: Steps of a window before its context, for lags and base; 0 if they need none.
        context: Steps of history that the network was trained on.
        reads: Whether a forecast starts from the last `context` steps, or from the whole history.
        num_targets: Targets of a row, which the network reads and predicts: y, followed by the channels.
        uniforms_per_draw: Uniforms that one draw from the head consumes; 0 if the head cannot be sampled.
    """

    segment: int
    block: int
    lookback: int
    pre_context: int
    context: int
    reads: InputMode
    num_targets: int
    uniforms_per_draw: int

    @classmethod
    def from_spec(cls, spec: Spec, *, season: int) -> Self:
        """Returns the layout of the networks of a specification, for data with this season."""
        baseline_steps = {"zero": 0, "last": 1, "seasonal_naive": season, "linear": season + 1, "mixture": 1}[spec.base]
        is_running = spec.scaling == "running"
        lookback = max(running_lookback(season, spec.long_season) if is_running else 1, baseline_steps, *spec.lags)
        return cls(
            segment=spec.segment,
            block=spec.block,
            lookback=lookback,
            pre_context=0 if lookback == 1 or is_running else lookback,
            context=spec.context,
            reads=spec.reads,
            num_targets=1 + len(spec.channels),
            uniforms_per_draw=spec.head.uniforms_per_draw,
        )

    def window_length(self, max_history: int) -> int:
        """Returns the length of a window that holds all that the network reads of histories of up to `max_history` steps.

        Where the whole history is read, no steps precede it: the pre-context is padding, as is the rest of its first segment.
        """
        return self.pre_context + (
            self.context if self.reads == "window" else -(-max_history // self.segment) * self.segment
        )

    def round_up_horizon(self, horizon: int) -> int:
        """Returns the horizon, rounded up to whole blocks."""
        return -(-horizon // self.block) * self.block
