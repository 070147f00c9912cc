"""Training examples gathered from a tape: a step reads only the pages of its windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.data.encoding import Encoding
from forecaster.data.on_disk.tape import TapeSeries
from forecaster.data.windows import Example, Window
from forecaster.errors import CovariateUnknown
from forecaster.frequency.timestamps import timestamps_to_int64
from forecaster.shapes import Bool, Float, Float64, Int

_MAX_CALENDAR_BYTES = 1 << 27  # of encoded calendars that are kept


class CalendarColumns(NamedTuple):
    """The encoded calendar of the steps of all series, computed for each first timestamp when it is first needed.

    Attributes:
        codes: The index of each series' first timestamp among the distinct ones.
        encode: Returns the columns of all steps after the first timestamp with an index.
    """

    codes: Int[np.ndarray, "series"]
    encode: Callable[[int], Float[np.ndarray, "step covariate"]]

    @classmethod
    def from_series(cls, series: TapeSeries, encoding: Encoding) -> CalendarColumns:
        """Returns the calendar of series of a tape; it is encoded for the longest series of each first timestamp."""
        _, codes = np.unique(timestamps_to_int64(series.tape.first_timestamps)[series.rows], return_inverse=True)
        by_length = np.argsort(series.lengths, kind="stable")
        longest = np.zeros(codes.max() + 1, dtype=np.int64)
        longest[codes[by_length]] = by_length  # the last one stays
        size = int(series.lengths.max()) * encoding.num_covariates * np.dtype(np.float32).itemsize

        @lru_cache(max(1, _MAX_CALENDAR_BYTES // size))
        def encode(code: int) -> Float[np.ndarray, "step covariate"]:
            return encoding.encode_covariates(series[int(longest[code])], future_steps=0).astype(np.float32)

        return cls(codes, encode)

    def read(
        self, series_indices: Int[np.ndarray, "row"], steps: Int[np.ndarray, "row step"]
    ) -> Float[np.ndarray, "row step covariate"]:
        """Returns the columns of steps of series, counted from the first step of each."""
        codes, groups = np.unique(self.codes[series_indices], return_inverse=True)
        if len(codes) == 1:
            columns: Float[np.ndarray, "row step covariate"] = self.encode(int(codes[0]))[steps]
            return columns
        result = np.empty((*steps.shape, self.encode(int(codes[0])).shape[1]), dtype=np.float32)
        for group, code in enumerate(codes.tolist()):
            is_member = groups == group
            result[is_member] = self.encode(code)[steps[is_member]]
        return result


class TapeWindows(NamedTuple):
    """Series of a tape as the source of examples, in place of a `PanelTensor`; what lies outside of a series is NaN.

    Attributes:
        values: The values of the tape, also those that were held out.
        starts: The position of each series' first value.
        lengths: The number of values of each series without those held out.
        calendar: The encoded calendar; None if the network reads none.
        static: The category indices of each series; None if there are none.
        channels: The channels at the positions of the values, by name.
        error_scales: As in `PanelTensor`.
    """

    values: Float64[np.ndarray, "position"]
    starts: Int[Tensor, "series"]
    lengths: Int[Tensor, "series"]
    calendar: CalendarColumns | None
    static: Int[Tensor, "series static"] | None
    channels: Mapping[str, Float64[np.ndarray, "position"]]
    error_scales: Float64[Tensor, "series target"] | None = None

    @classmethod
    def from_series(cls, series: TapeSeries, *, encoding: Encoding, channels: tuple[str, ...] = ()) -> TapeWindows:
        """Returns the windows of series of a tape; raises CovariateUnknown for columns that the tape lacks."""
        covariates, tape = [*encoding.numeric, *encoding.categories], series.tape
        missing = [*covariates, *(name for name in channels if name not in tape.channels)]
        if missing:
            raise CovariateUnknown(
                f"Expected the columns {', '.join(missing)} in the panel on disk; its channels are: "
                f"{', '.join(tape.channels) or 'none'}. Read it with these channels; known covariates need a panel in memory.",
                where=missing[0],
            )
        static = None
        if encoding.static:
            static = torch.empty((len(series), len(encoding.static)), dtype=torch.int64)
            for row, item in enumerate(series):
                static[row] = torch.from_numpy(encoding.encode_static(item))
        return cls(
            tape.values.scattered,
            torch.from_numpy(series.starts),
            torch.from_numpy(series.lengths),
            CalendarColumns.from_series(series, encoding) if encoding.num_covariates else None,
            static,
            {name: tape.channels[name].scattered for name in channels},
        )

    @property
    def device(self) -> torch.device:
        """The device of the examples; Lightning copies them to that of the network."""
        return torch.device("cpu")

    def to(self, _device: str | torch.device) -> TapeWindows:
        """Returns these windows: the tape stays on disk."""
        return self

    def extract_examples(
        self,
        positions: Int[Tensor, "row"],
        *,
        context: int,
        horizon: int,
        series_indices: Int[Tensor, "row"],
    ) -> Example:
        """Gathers the examples of series whose first future value is at `positions`, as `PanelTensor.extract_examples` does."""
        rows = series_indices.numpy()
        first = self.starts[series_indices].numpy()[:, None]
        last = first + self.lengths[series_indices].numpy()[:, None] - 1
        steps = positions.numpy()[:, None] + np.arange(-context, horizon)
        is_outside = (steps < first) | (steps > last)
        steps = steps.clip(first, last)
        covariates = channels = None
        if self.calendar is not None:
            columns = self.calendar.read(rows, steps - first)
            columns[is_outside] = 0.0
            covariates = torch.from_numpy(columns)
        if self.channels:
            channels = torch.stack([_gather(column, steps, is_outside) for column in self.channels.values()], dim=2)
        full = Window(
            _gather(self.values, steps, is_outside),
            covariates,
            None if self.static is None else self.static[series_indices],
            channels,
        )
        future = full.slice_steps(slice(context, None))
        error_scale = None if self.error_scales is None else self.error_scales[series_indices].flatten()
        return Example(full.slice_steps(slice(context)), future.targets, future.covariates, error_scale)


def _gather(
    column: Float64[np.ndarray, "position"],
    steps: Int[np.ndarray, "row step"],
    is_outside: Bool[np.ndarray, "row step"],
) -> Float64[Tensor, "row step"]:
    """Returns the values of a column at the steps of each row, NaN outside of its series."""
    values = column[steps]
    values[is_outside] = np.nan
    return torch.from_numpy(values)
