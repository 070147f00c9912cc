"""Histories of different lengths beside each other, as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forecaster.errors import CovariateUnknown
from forecaster.series import Series
from forecaster.shapes import Float64


def padded(
    histories: Sequence[Float64[np.ndarray, "_ *columns"]], *, context: int, empty: float
) -> Float64[np.ndarray, "row context *columns"]:
    """The last `context` steps of every history, with `empty` before those that are shorter."""
    if all(len(history) >= context for history in histories):
        return np.concatenate([history[-context:] for history in histories]).reshape(
            len(histories), context, *histories[0].shape[1:]
        )
    rows = np.full((len(histories), context, *histories[0].shape[1:]), empty)
    for row, history in enumerate(histories):
        tail = history[-context:]
        rows[row, context - len(tail) :] = tail
    return rows


def channels_of(one: Series, names: Sequence[str]) -> Float64[np.ndarray, "step channel"]:
    """The channels of a series by name, side by side; raises CovariateUnknown if it lacks one."""
    missing = [name for name in names if name not in one.channels]
    if missing:
        raise CovariateUnknown(
            f"Series {one.id!r} needs the channels {', '.join(names)} for its history; {', '.join(missing)} not found among: "
            f"{', '.join(one.channels) or 'none'}. Send a value for each step, with gaps where it was not observed.",
            where=one.id,
        )
    return np.stack([one.channels[name] for name in names], axis=1) if names else np.zeros((len(one), 0))
