"""The values that an explanation covers, each with the value that replaces it, and windows with other values in their place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forecaster.data.calendar import list_calendar_columns
from forecaster.data.encoding import Encoding
from forecaster.data.windows import Window
from forecaster.engines.engine import RolloutInput
from forecaster.shapes import Float, Float64, Int

TARGET = ""  # the name of y among the columns


class Column(NamedTuple):
    """One column of the input.

    Attributes:
        name: Of a channel or a covariate; `TARGET` for y. A calendar feature is a covariate named `calendar hour`.
        entries: Index of each entry. An encoded covariate has several entries per step.
        steps: Step of each entry, counted from the first explained step.
    """

    name: str
    entries: Int[np.ndarray, "entry"]
    steps: Int[np.ndarray, "entry"]


class ExplainedInput(NamedTuple):
    """The entries of one input that are explained, and what replaces them.

    Entries are, in this order: the last `steps` values of y, of each channel and of each encoded covariate, and then the future
    of each encoded covariate over the horizon. All other input is constant: earlier steps and static columns.

    Attributes:
        inputs: The whole input, a single row.
        steps: Number of explained steps of the history.
        horizon: Steps ahead.
        entries: The values; NaN where missing.
        reference: The values that replace them; NaN where missing.
        columns: What the entries belong to: y first, then the channels and the covariates.
    """

    inputs: RolloutInput
    steps: int
    horizon: int
    entries: Float64[np.ndarray, "entry"]
    reference: Float64[np.ndarray, "entry"]
    columns: tuple[Column, ...]

    @classmethod
    def from_input(
        cls,
        inputs: RolloutInput,
        *,
        steps: int,
        horizon: int,
        channels: tuple[str, ...] = (),
        encoding: Encoding | None = None,
    ) -> ExplainedInput:
        """Selects the entries of an input of one row.

        Values of y and of channels are replaced by the mean of those observed at these steps, encoded covariates by 0: the mean
        of a number in the training data, or no category. A history that is constant has no scale of its own: its forecast is its
        level, if the network has learned nothing else.

        Args:
            inputs: The input.
            steps: Number of latest steps to explain.
            horizon: Steps ahead.
            channels: Names of the channels.
            encoding: The encoding of the covariates, if there are any.
        """
        targets = [inputs.values[0]]
        if inputs.channels is not None:
            targets += list(inputs.channels[0].T)
        columns = [
            Column(name, index * steps + np.arange(steps), np.arange(steps))
            for index, name in enumerate((TARGET, *channels))
        ]
        observed = [target[-steps:] for target in targets]
        replaced = [np.where(np.isnan(target), np.nan, _observed_mean(target)) for target in observed]
        if inputs.covariates is not None and inputs.future_covariates is not None and encoding is not None:
            past, future = inputs.covariates[0, -steps:].T, inputs.future_covariates[0, :horizon].T
            names = np.array(_name_covariates(encoding))
            first, first_future = steps * len(targets), steps * (len(targets) + len(names))
            for name in dict.fromkeys(names.tolist()):
                indices = np.flatnonzero(names == name)[:, None]
                entries = np.concatenate(
                    [
                        (first + indices * steps + np.arange(steps)).ravel(),
                        (first_future + indices * horizon + np.arange(horizon)).ravel(),
                    ]
                )
                places = [np.tile(np.arange(steps), len(indices)), np.tile(steps + np.arange(horizon), len(indices))]
                columns.append(Column(name, entries, np.concatenate(places)))
            observed += [past.ravel(), future.ravel()]
            replaced.append(np.zeros(past.size + future.size))
        return cls(
            inputs,
            steps,
            horizon,
            np.concatenate(observed).astype(np.float64),
            np.concatenate(replaced).astype(np.float64),
            tuple(columns),
        )

    def fill(self, entries: Float64[Tensor, "row entry"]) -> tuple[Window, Float[Tensor, "row ahead covariate"] | None]:
        """Returns the window and the future covariates of each row of entries; missing values stay missing."""
        rows, steps = len(entries), self.steps
        missing = torch.from_numpy(np.isnan(self.entries))
        entries = entries.masked_fill(missing, torch.nan)
        values, channels = self._join_past(self.inputs.values[..., None], entries, first=0)[..., 0], None
        first = steps
        if self.inputs.channels is not None:
            channels = self._join_past(self.inputs.channels, entries, first=first)
            first += steps * channels.shape[2]
        covariates = future = None
        if self.inputs.covariates is not None and self.inputs.future_covariates is not None:
            covariates = self._join_past(self.inputs.covariates, entries, first=first)
            first += steps * covariates.shape[2]
            ahead = entries[:, first:].reshape(rows, -1, self.horizon).transpose(1, 2).float()
            beyond = torch.from_numpy(self.inputs.future_covariates)[:, self.horizon :].expand(rows, -1, -1)
            future = torch.cat([ahead, beyond], dim=1)
        static = None if self.inputs.static is None else torch.from_numpy(self.inputs.static).expand(rows, -1)
        return Window(values, covariates, static, channels), future

    def _join_past(
        self, whole: Float[np.ndarray, "1 step column"], entries: Float64[Tensor, "row entry"], *, first: int
    ) -> Float[Tensor, "row step column"]:
        """Returns the columns of the history: constant, then explained."""
        count = whole.shape[2]
        constant = torch.from_numpy(whole)[:, : whole.shape[1] - self.steps].expand(len(entries), -1, -1)
        explained = entries[:, first : first + self.steps * count].reshape(len(entries), count, self.steps)
        return torch.cat([constant, explained.transpose(1, 2).to(constant.dtype)], dim=1)


def _observed_mean(values: Float64[np.ndarray, "step"]) -> float:
    observed = values[~np.isnan(values)]
    return float(observed.mean()) if len(observed) else np.nan


def _name_covariates(encoding: Encoding) -> tuple[str, ...]:
    """Returns the name of the covariate of each encoded column."""
    calendar = [
        f"calendar {name if name.startswith('holiday:') else name.split(' ')[0]}"
        for name in list_calendar_columns(encoding.calendar)
    ]
    categories = [name for name, labels in encoding.categories.items() for _ in labels]
    return (*calendar, *encoding.numeric, *categories)
