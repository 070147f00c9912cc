"""Draws sample paths in batches, each with some paths of every series; near the deadline, the finished batches are returned."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from forecaster.errors import ForecasterError
from forecaster.shapes import Float64
from serving.deadline import Deadline
from serving.errors import ApiError

PathsOrError = Float64[np.ndarray, "path horizon"] | ForecasterError
MIN_PATHS = 20  # least paths per series in a response, unless fewer were requested
_FIRST_BATCH_STEPS, _MAX_BATCH_STEPS = 1 << 14, 1 << 17  # steps of all paths of a batch of more than MIN_PATHS paths
_SAMPLING_SHARE = 0.85  # of the time until the deadline; the rest is for encoding the response


def sample_in_batches(
    draw: Callable[[range, Deadline], Sequence[PathsOrError]], *, samples: int, steps: int, deadline: Deadline
) -> list[PathsOrError]:
    """Returns the paths or the error of each series: as many paths as time allows, at least MIN_PATHS or `samples`.

    Raises ApiError if the deadline passes before the first batch is done. The batch size doubles while time allows, because twice
    the paths take less than twice the time.

    Args:
        draw: Draws the paths with these numbers for every series, and raises ApiError once a deadline has passed.
        samples: The requested number of paths.
        steps: The horizons of all series together.
        deadline: The deadline of the response.
    """
    size, max_size = (max(MIN_PATHS, max_steps // steps) for max_steps in (_FIRST_BATCH_STEPS, _MAX_BATCH_STEPS))
    sampling_deadline = deadline._replace(timeout_s=_SAMPLING_SHARE * deadline.timeout_s)
    batches: list[Sequence[PathsOrError]] = []
    drawn, batch_seconds = 0, 0.0
    while drawn < samples and (not batches or sampling_deadline.remaining_s > batch_seconds):
        if batches and sampling_deadline.remaining_s > 2 * batch_seconds:
            size = min(2 * size, max_size)
        numbers, remaining_s = range(drawn, min(drawn + size, samples)), deadline.remaining_s
        try:
            batches.append(draw(numbers, sampling_deadline if batches else deadline))
        except ApiError:
            if not batches or deadline.is_over:
                raise
            break
        batch_seconds, drawn = remaining_s - deadline.remaining_s, numbers.stop
    return [_join_batches(paths) for paths in zip(*batches, strict=True)]


def _join_batches(batches: Sequence[PathsOrError]) -> PathsOrError:
    paths = [batch for batch in batches if not isinstance(batch, ForecasterError)]
    errors = [batch for batch in batches if isinstance(batch, ForecasterError)]
    return errors[0] if errors else np.concatenate(paths)
