"""Encoding of covariates, calendar features and categories as numbers: fitted to the training data, identical in serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from forecaster.data.calendar import compute_calendar_features, list_calendar_columns
from forecaster.errors import CovariateUnknown
from forecaster.frequency import build_timestamps
from forecaster.series import Panel, Series
from forecaster.shapes import Float64, Int


class Encoding(BaseModel):
    """The encoding of the columns of a series; saved with the model.

    Attributes:
        calendar: Names of calendar features, in the local time of the series.
        numeric: Mean and standard deviation of each numeric covariate in the training data.
        categories: Categories of each text covariate in the training data; any other value is encoded as all zeros.
        static: Categories of each static feature in the training data; any other value is encoded as index 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    calendar: tuple[str, ...] = ()
    numeric: dict[str, tuple[float, Annotated[float, Field(gt=0)]]] = {}
    categories: dict[str, tuple[str, ...]] = {}
    static: dict[str, tuple[str, ...]] = {}

    @property
    def num_covariates(self) -> int:
        """The number of encoded covariates per step."""
        return len(list_calendar_columns(self.calendar)) + len(self.numeric) + sum(map(len, self.categories.values()))

    @cached_property
    def _static_indices(self) -> dict[str, dict[str, int]]:
        """The index of each category of each static feature, from 1."""
        return {
            name: {category: index for index, category in enumerate(categories, start=1)}
            for name, categories in self.static.items()
        }

    @property
    def static_cardinalities(self) -> tuple[int, ...]:
        """The number of categories of each static feature."""
        return tuple(len(values) for values in self.static.values())

    def encode_covariates(
        self, series: Series, *, future_steps: int
    ) -> Float64[np.ndarray, "step_and_ahead covariate"]:
        """Encodes the covariates of every step of the history and of `future_steps` steps after it.

        Steps beyond the end of the series' covariates are encoded as 0: the mean, or no category.
        Raises CovariateUnknown if the series lacks a covariate.
        """
        steps = len(series) + future_steps
        encoded = np.zeros((steps, self.num_covariates))
        column = 0
        if self.calendar:
            timestamps = build_timestamps(series.start, freq=series.freq, steps=steps)
            features = compute_calendar_features(timestamps, self.calendar)
            column = features.shape[1]
            encoded[:, :column] = features
        for name, (mean, spread) in self.numeric.items():
            values = _get_covariate(series, name)[:steps]
            encoded[: len(values), column] = (values.astype(np.float64, copy=False) - mean) / spread
            column += 1
        for name, categories in self.categories.items():
            labels = _get_covariate(series, name)[:steps, None]
            encoded[: len(labels), column : column + len(categories)] = labels == np.array(categories, dtype=object)
            column += len(categories)
        return encoded

    def encode_static(self, series: Series) -> Int[np.ndarray, "static"]:
        """Returns the category index of each static feature; 0 if the value is unknown or missing."""
        return np.array(
            [
                indices.get(series.static[name], 0) if name in series.static else 0
                for name, indices in self._static_indices.items()
            ],
            dtype=np.int64,
        )


EMPTY_ENCODING = Encoding()
"""The encoding of a model that reads only the values."""


def fit_encoding(
    panel: Panel, *, calendar: Sequence[str], covariates: Sequence[str], static: Sequence[str]
) -> Encoding:
    """Fits an encoding to the columns of a panel; covariates after the end of each series are not used.

    Raises CovariateUnknown if a series lacks a covariate.
    """
    numeric: dict[str, tuple[float, float]] = {}
    categories: dict[str, tuple[str, ...]] = {}
    for name in covariates:
        columns = [_get_covariate(series, name)[: len(series)] for series in panel.series]
        if any(column.dtype == object for column in columns):
            categories[name] = tuple(sorted({str(value) for column in columns for value in column}))
        else:
            values = np.concatenate(columns).astype(np.float64)
            numeric[name] = (float(values.mean()), float(values.std()) or 1.0)
    static_categories = {
        name: tuple(sorted({series.static[name] for series in panel.series if name in series.static}))
        for name in static
    }
    return Encoding(calendar=tuple(calendar), numeric=numeric, categories=categories, static=static_categories)


def _get_covariate(series: Series, name: str) -> np.ndarray:
    covariates: Mapping[str, np.ndarray] = series.covariates
    if name not in covariates:
        raise CovariateUnknown(
            f"Series {series.id!r} needs the covariate {name!r}; it has: {', '.join(covariates) or 'none'}. "
            "Send it for every step of the history and of the horizon.",
            where=series.id,
        )
    return covariates[name]
