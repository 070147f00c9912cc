"""What computes forecasts: a network's rollout, whoever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from forecaster.shapes import Float, Float64, Int


class RolloutInput(NamedTuple):
    """What a rollout starts from, one row a series, as plain arrays.

    Attributes:
        values: In units of the data, latest last; NaN marks a step that was not observed.
        covariates: Of the same steps; None if the network reads none.
        static: Numbers of the categories of each row; None likewise.
        channels: Of the same steps; None likewise.
        ahead: The covariates of every step to come, up to the end of the last block; None likewise. One row may have
            several futures.
    """

    values: Float64[np.ndarray, "row step"]
    covariates: Float[np.ndarray, "row step covariate"] | None = None
    static: Int[np.ndarray, "row static"] | None = None
    channels: Float64[np.ndarray, "row step channel"] | None = None
    future_covariates: Float[np.ndarray, "row_or_way ahead covariate"] | None = None


@runtime_checkable
class Engine(Protocol):
    """A network that rolls; it remembers nothing between calls, so threads may share it."""

    @property
    def can_sample(self) -> bool:
        """Whether it can draw paths."""

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
    ) -> Float64[np.ndarray, "way horizon"]:
        """The next `horizon` values in units of the data.

        Args:
            known: The histories.
            horizon: Steps ahead, 1 at least.
            noise: Uniforms in (0, 1) for every step up to the end of the last block, of y and of each channel in turn:
                paths are drawn with them, of the one row that is known, or one of each row. Without them the point
                forecast of each row is given and fed back.
        Returns:
            A row that stops being finite, or runs away, is NaN from that step on.
        """


class EnsembleEngine:
    """Engines of several members: the median of what they say; of paths, each draws its share in turn."""

    def __init__(self, members: Sequence[Engine]) -> None:
        assert members
        self.members = tuple(members)

    @property
    def can_sample(self) -> bool:
        """Whether all can draw."""
        return all(member.can_sample for member in self.members)

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
    ) -> Float64[np.ndarray, "way horizon"]:
        """As `Backend.roll_out`; NaN where no member has a finite value."""
        if noise is None:
            return ensemble_median(np.stack([member.roll_out(inputs, horizon=horizon) for member in self.members]))
        targets = 1 if inputs.channels is None else 1 + inputs.channels.shape[2]
        each = noise.reshape(-1, targets, *noise.shape[1:])
        told = np.empty((len(each), horizon))
        for number, member in enumerate(self.members):
            share = slice(number, None, len(self.members))
            if len(each[share]):
                part = RolloutInput(*(_select_rows(one, share) for one in inputs))  # type: ignore[arg-type]
                told[share] = member.roll_out(part, horizon=horizon, noise=each[share].reshape(-1, *noise.shape[1:]))
        return told


def ensemble_median(forecasts: Float64[np.ndarray, "member *axes"]) -> Float64[np.ndarray, "*axes"]:
    """The median of the members that say something finite; NaN where none does."""
    rising = np.sort(np.where(np.isfinite(forecasts), forecasts, np.nan), axis=0)  # NaN last
    count = np.isfinite(rising).sum(axis=0)[None]
    low, high = (
        np.take_along_axis(rising, place.clip(0, len(forecasts) - 1), axis=0)[0]
        for place in ((count - 1) // 2, count // 2)
    )
    return np.asarray((low + high) / 2)


def _select_rows(array: np.ndarray | None, rows: slice) -> np.ndarray | None:
    """Some of the rows; what stands for all of them, one row, is everyone's."""
    return array if array is None or len(array) == 1 else array[rows]
