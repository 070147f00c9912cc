"""Covariates, calendar and categories as numbers: learned from the training data, the same in training and in serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from forecaster.data.calendar import compute_calendar_features, list_calendar_columns
from forecaster.errors import CovariateUnknown
from forecaster.frequency import build_timestamps
from forecaster.series import Panel, Series
from forecaster.shapes import Float64, Int


class Encoding(BaseModel):
    """How the columns of a series become numbers; saved with the forecaster.

    Attributes:
        calendar: Names of calendar features, of the local time of the series.
        numeric: Mean and spread of each numeric covariate in the training data.
        categories: Known values of each covariate of text; another value is none of them.
        static: Known values of each static category; number 0 stands for any other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    calendar: tuple[str, ...] = ()
    numeric: dict[str, tuple[float, float]] = {}
    categories: dict[str, tuple[str, ...]] = {}
    static: dict[str, tuple[str, ...]] = {}

    @property
    def num_covariates(self) -> int:
        """How many numbers a step has."""
        return len(list_calendar_columns(self.calendar)) + len(self.numeric) + sum(map(len, self.categories.values()))

    @property
    def static_cardinalities(self) -> tuple[int, ...]:
        """How many known values each static category has."""
        return tuple(len(values) for values in self.static.values())

    def encode_covariates(
        self, series: Series, *, future_steps: int
    ) -> Float64[np.ndarray, "step_and_ahead covariate"]:
        """The numbers of every step of the history and of `future_steps` steps after it.

        Steps for which the series' own covariates are not known any more are 0: the mean, or no category.
        Raises CovariateUnknown if the series lacks a column.
        """
        steps = len(series) + future_steps
        parts = []
        if self.calendar:
            parts.append(
                compute_calendar_features(build_timestamps(series.start, freq=series.freq, steps=steps), self.calendar)
            )
        for name, (mean, spread) in self.numeric.items():
            parts.append(
                _pad_to_length(((_get_covariate(series, name).astype(np.float64) - mean) / spread)[:, None], steps)
            )
        for name, known in self.categories.items():
            parts.append(
                _pad_to_length(
                    (_get_covariate(series, name)[:, None] == np.array(known, dtype=object)).astype(np.float64), steps
                )
            )
        return np.concatenate(parts, axis=1) if parts else np.zeros((steps, 0))

    def encode_static(self, series: Series) -> Int[np.ndarray, "static"]:
        """The number of each static category; 0 where the value is unknown or not given."""
        return np.array(
            [_category_index(known, series.static.get(name)) for name, known in self.static.items()], dtype=np.int64
        )


EMPTY_ENCODING = Encoding()
"""Nothing but the values."""


def fit_encoding(
    panel: Panel, *, calendar: Sequence[str], covariates: Sequence[str], static: Sequence[str]
) -> Encoding:
    """The encoding of a panel's own columns: means, spreads and categories as they are up to each series' end.

    Raises CovariateUnknown if a series lacks a column.
    """
    numeric: dict[str, tuple[float, float]] = {}
    categories: dict[str, tuple[str, ...]] = {}
    for name in covariates:
        columns = [_get_covariate(one, name)[: len(one)] for one in panel.series]
        if any(column.dtype == object for column in columns):
            categories[name] = tuple(sorted({str(value) for column in columns for value in column}))
        else:
            values = np.concatenate(columns).astype(np.float64)
            numeric[name] = (float(values.mean()), float(values.std()) or 1.0)
    groups = {name: tuple(sorted({one.static[name] for one in panel.series if name in one.static})) for name in static}
    return Encoding(calendar=tuple(calendar), numeric=numeric, categories=categories, static=groups)


def _get_covariate(series: Series, name: str) -> np.ndarray:
    found: Mapping[str, np.ndarray] = series.covariates
    if name not in found:
        raise CovariateUnknown(
            f"Series {series.id!r} needs the covariate {name!r}; it has: {', '.join(found) or 'none'}. "
            "Send it for every step of the history and of the horizon.",
            where=series.id,
        )
    return found[name]


def _pad_to_length(columns: np.ndarray, length: int) -> np.ndarray:
    known = columns[:length]
    return np.concatenate([known, np.zeros((length - len(known), known.shape[1]))])


def _category_index(categories: Sequence[str], value: str | None) -> int:
    return categories.index(value) + 1 if value in categories else 0
