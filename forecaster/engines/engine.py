"""The contract of an engine: it rolls out a network, by whatever means. Also the ensemble of several engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from forecaster.shapes import Float, Float64, Int


class RolloutInput(NamedTuple):
    """The inputs of a rollout as plain arrays, one row per series.

    Attributes:
        values: Observed values in data units, oldest first; NaN where missing.
        covariates: Covariates of the same steps; None if the network reads none.
        static: Indices of the static categories of each row; None if the network reads none.
        channels: Channels of the same steps; None if the network reads none.
        future_covariates: Covariates of every future step up to the end of the last block; None if the network reads none.
            A single row may have several alternatives.
    """

    values: Float64[np.ndarray, "row step"]
    covariates: Float[np.ndarray, "row step covariate"] | None = None
    static: Int[np.ndarray, "row static"] | None = None
    channels: Float64[np.ndarray, "row step channel"] | None = None
    future_covariates: Float[np.ndarray, "row_or_path ahead covariate"] | None = None


@runtime_checkable
class Engine(Protocol):
    """Rolls out a network; it keeps no state between calls, so threads may share it."""

    @property
    def can_sample(self) -> bool:
        """Whether the engine can draw sample paths."""

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "path_target ahead noise"] | None = None
    ) -> Float64[np.ndarray, "path horizon"]:
        """Predicts the next `horizon` values in data units.

        The result has one row per path: per row of the inputs or, if the inputs are a single row, per sample path or
        alternative of its future covariates.

        Args:
            inputs: The histories.
            horizon: Steps ahead, at least 1.
            noise: Uniforms in (0, 1) for every step up to the end of the last block, of y and each channel in turn. Paths
                are drawn with them: any number for a single row, or one for each row. Without them the point forecast
                of each row is returned and fed back.
        Returns:
            The forecasts. A path that becomes non-finite or diverges is NaN from that step on.
        """


@runtime_checkable
class QuantileEngine(Engine, Protocol):
    """An engine that may also return quantiles of the head's own distribution."""

    @property
    def has_quantiles(self) -> bool:
        """Whether the head has quantiles."""

    def roll_out_quantiles(
        self, inputs: RolloutInput, *, horizon: int, levels: Sequence[float]
    ) -> Float64[np.ndarray, "path horizon level"]:
        """Predicts quantiles of the next `horizon` values in data units, at ascending levels; they do not cross.

        The median is the point forecast of `roll_out`, to the bit, and is fed back. Beyond the first block, the spread of
        the head is widened by that at the end of the block before (`forecaster.engines.spread`).
        """


def find_quantile_engine(engine: Engine) -> QuantileEngine | None:
    """Returns the engine if it has quantiles, else None."""
    return engine if isinstance(engine, QuantileEngine) and engine.has_quantiles else None


class EnsembleEngine:
    """Combines the engines of several members: medians of point forecasts and of quantiles; paths are shared out in turn."""

    def __init__(self, members: Sequence[Engine]) -> None:
        assert members
        self.members = tuple(members)

    @property
    def can_sample(self) -> bool:
        """Whether all members can draw."""
        return all(member.can_sample for member in self.members)

    def roll_out(
        self, inputs: RolloutInput, *, horizon: int, noise: Float[np.ndarray, "path_target ahead noise"] | None = None
    ) -> Float64[np.ndarray, "path horizon"]:
        """See `Engine.roll_out`; NaN where no member has a finite value."""
        if noise is None:
            return ensemble_median(np.stack([member.roll_out(inputs, horizon=horizon) for member in self.members]))
        targets = 1 if inputs.channels is None else 1 + inputs.channels.shape[2]
        noise_per_path = noise.reshape(-1, targets, *noise.shape[1:])
        forecasts = np.empty((len(noise_per_path), horizon))
        for index, member in enumerate(self.members):
            member_paths = slice(index, None, len(self.members))
            if len(noise_per_path[member_paths]):
                member_inputs = RolloutInput(*(_select_rows(array, member_paths) for array in inputs))  # type: ignore[arg-type]
                forecasts[member_paths] = member.roll_out(
                    member_inputs, horizon=horizon, noise=noise_per_path[member_paths].reshape(-1, *noise.shape[1:])
                )
        return forecasts

    @property
    def has_quantiles(self) -> bool:
        """Whether all members have quantiles."""
        return all(find_quantile_engine(member) is not None for member in self.members)

    def roll_out_quantiles(
        self, inputs: RolloutInput, *, horizon: int, levels: Sequence[float]
    ) -> Float64[np.ndarray, "path horizon level"]:
        """See `QuantileEngine.roll_out_quantiles`."""
        members = [member for member in self.members if isinstance(member, QuantileEngine)]
        return ensemble_median(
            np.stack([member.roll_out_quantiles(inputs, horizon=horizon, levels=levels) for member in members])
        )


def ensemble_median(forecasts: Float64[np.ndarray, "member *axes"]) -> Float64[np.ndarray, "*axes"]:
    """Returns the median of the members with a finite value; NaN where no member has one."""
    ordered = np.sort(np.where(np.isfinite(forecasts), forecasts, np.nan), axis=0)  # NaN last
    count = np.isfinite(ordered).sum(axis=0)[None]
    low, high = (
        np.take_along_axis(ordered, index.clip(0, len(forecasts) - 1), axis=0)[0]
        for index in ((count - 1) // 2, count // 2)
    )
    return np.asarray((low + high) / 2)


def _select_rows(array: np.ndarray | None, rows: slice) -> np.ndarray | None:
    """Selects rows; an array with a single row applies to all of them."""
    return array if array is None or len(array) == 1 else array[rows]
