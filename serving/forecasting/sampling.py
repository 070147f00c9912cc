"""Paths are drawn in rounds, some of every series in each: when the deadline comes near, what is done counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from forecaster.errors import ForecasterError
from forecaster.shapes import Float64
from serving.deadline import Deadline
from serving.errors import ApiError

PathsOrError = Float64[np.ndarray, "path horizon"] | ForecasterError
MIN_PATHS = 20  # paths of a series that are worth an answer; fewer only where fewer were asked for
_FIRST_BATCH_STEPS, _MAX_BATCH_STEPS = (
    1 << 14,
    1 << 17,
)  # steps of all paths of a round, if those are more than the least
_SAMPLING_SHARE = 0.85  # of the time until the deadline; the rest is for writing the answer


def sample_in_batches(
    draw: Callable[[range, Deadline], Sequence[PathsOrError]], *, samples: int, steps: int, deadline: Deadline
) -> list[PathsOrError]:
    """The paths of each series, or what stands in its way; as many as there was time for, if those are LEAST or more.

    Raises Problem if the deadline passes before. Twice the paths take less than twice the time: rounds double where there is
    time for that.

    Args:
        draw: Draws the paths of these numbers of every series, and raises Problem once a deadline has passed.
        samples: Paths that were asked for.
        steps: Steps ahead of all series together.
        deadline: Of the answer.
    """
    size, most = (max(MIN_PATHS, at_once // steps) for at_once in (_FIRST_BATCH_STEPS, _MAX_BATCH_STEPS))
    soon = deadline._replace(timeout_s=_SAMPLING_SHARE * deadline.timeout_s)
    rounds: list[Sequence[PathsOrError]] = []
    done, took = 0, 0.0
    while done < samples and (not rounds or soon.remaining_s > took):
        if rounds and soon.remaining_s > 2 * took:
            size = min(2 * size, most)
        some, before = range(done, min(done + size, samples)), deadline.remaining_s
        try:
            rounds.append(draw(some, soon if rounds else deadline))
        except ApiError:
            if not rounds or deadline.is_over:
                raise
            break
        took, done = before - deadline.remaining_s, some.stop
    return [_join_batches(parts) for parts in zip(*rounds, strict=True)]


def _join_batches(batches: Sequence[PathsOrError]) -> PathsOrError:
    drawn = [part for part in batches if not isinstance(part, ForecasterError)]
    faults = [part for part in batches if isinstance(part, ForecasterError)]
    return faults[0] if faults else np.concatenate(drawn)
