"""Batches of rows of similar length, so that each padded batch fits into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from forecaster.shapes import Int

MAX_BATCH_ROWS = 4096  # bounds the memory of one rollout; larger requests are split into several
MAX_BATCH_VALUES = 1 << 24  # of all padded histories in one batch


def batch_by_length(lengths: Sequence[int]) -> Iterator[Int[np.ndarray, "row"]]:
    """Yields the indices of rows for batches in ascending order of length; each padded batch fits into memory."""
    if len(lengths) == 1:
        yield np.zeros(1, dtype=np.int64)
        return
    order = np.argsort(lengths, kind="stable")
    sorted_lengths = np.asarray(lengths)[order]
    first = 0
    while first < len(order):
        candidates = sorted_lengths[first : first + MAX_BATCH_ROWS]
        rows = max(1, int((candidates * np.arange(1, len(candidates) + 1) <= MAX_BATCH_VALUES).sum()))
        yield order[first : first + rows]
        first += rows
