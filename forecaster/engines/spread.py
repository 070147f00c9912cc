"""Quantiles of a rollout of several blocks, each of which is predicted as if the medians before it had been observed."""

from __future__ import annotations

import numpy as np

from forecaster.shapes import Float64


def widen_block(
    offsets: Float64[np.ndarray, "row block level"], before: Float64[np.ndarray, "row level"] | None
) -> Float64[np.ndarray, "row block level"]:
    """Adds the spread at the end of the blocks before to that of a block.

    The head's spread is that of the errors of this block alone. Its errors and those at the end of the block before are taken as
    independent, as in a random walk, so squares are added. The result is never narrower than `before`, and quantiles
    whose levels ascend do not cross.

    Args:
        offsets: Quantiles relative to the median; at each level of one sign.
        before: Those of the last step of the block before, already widened; None for the first block.
    """
    return offsets if before is None else np.copysign(np.hypot(offsets, before[:, None]), offsets + before[:, None])
