"""What computes forecasts: a network's rollout, whoever runs it."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from forecaster.shapes import Float, Float64, Int


class Known(NamedTuple):
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
    ahead: Float[np.ndarray, "row_or_way ahead covariate"] | None = None


@runtime_checkable
class Engine(Protocol):
    """A network that rolls; it remembers nothing between calls, so threads may share it."""

    @property
    def draws(self) -> bool:
        """Whether it can draw paths."""

    def roll(
        self, known: Known, *, horizon: int, noise: Float[np.ndarray, "track ahead noise"] | None = None
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
