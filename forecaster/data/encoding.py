"""Encoding of covariates, calendar features and categories as numbers: fitted to the training data, identical in serving."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from forecaster.data.calendar import compute_calendar_features, list_calendar_columns
from forecaster.errors import CovariateUnknown, InputError, NotANumber
from forecaster.frequency.timestamps import build_timestamps
from forecaster.series import Panel, Series
from forecaster.shapes import Float64, Int

_WHOLE_DECIMAL = re.compile(r"([+-]?[0-9]+)\.0+")
_MAX_LISTED_LABELS = 3  # unseen categories listed in a warning


class _CategoryIndex(NamedTuple):
    """The index of each category, by its exact text, and by its text without the zeros of a whole decimal number."""

    exact: dict[str, int]
    as_integer: dict[str, int]  # only where one category has this text

    def find(self, label: object) -> int:
        """Returns the index of the category of a label; -1 if there is none."""
        text = str(label)
        index = self.exact.get(text)
        return self.as_integer.get(_drop_zero_decimals(text), -1) if index is None else index


@lru_cache(maxsize=256)
def _index_categories(categories: tuple[str, ...]) -> _CategoryIndex:
    exact = {category: index for index, category in enumerate(categories)}
    texts = [_drop_zero_decimals(category) for category in categories]
    counts = Counter(texts)
    return _CategoryIndex(exact, {text: index for index, text in enumerate(texts) if counts[text] == 1})


def find_category(categories: tuple[str, ...], label: object) -> int:
    """Returns the index of the category of a label; -1 if there is none.

    A column of whole numbers has the text 1, 1.0 or 1.00, depending on the file that holds it; these are one category, unless
    the training data have several of them.
    """
    return _index_categories(categories).find(label)


def is_text(column: np.ndarray) -> bool:
    """Whether a covariate holds text; otherwise it holds numbers."""
    return column.dtype.kind in "OUT"


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
    def _category_indices(self) -> dict[str, _CategoryIndex]:
        """The categories of each text covariate."""
        return {name: _index_categories(categories) for name, categories in self.categories.items()}

    @cached_property
    def _static_indices(self) -> dict[str, _CategoryIndex]:
        """The categories of each static feature."""
        return {name: _index_categories(categories) for name, categories in self.static.items()}

    @property
    def static_cardinalities(self) -> tuple[int, ...]:
        """The number of categories of each static feature."""
        return tuple(len(values) for values in self.static.values())

    def encode_covariates(
        self, series: Series, *, future_steps: int
    ) -> Float64[np.ndarray, "step_and_ahead covariate"]:
        """Encodes the covariates of every step of the history and of `future_steps` steps after it.

        Steps beyond the end of the series' covariates are encoded as 0: the mean, or no category.
        Raises CovariateUnknown if the series lacks a covariate, or has numbers where the training data had text, and NotANumber
        for text where they had numbers.
        """
        error = self.find_type_error(series)
        if error is not None:
            raise error
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
        for name, index in self._category_indices.items():
            labels = _get_covariate(series, name)[:steps]
            indices = np.array([index.find(label) for label in labels.tolist()], dtype=np.int64)
            rows = np.flatnonzero(indices >= 0)
            encoded[rows, column + indices[rows]] = 1.0
            column += len(index.exact)
        return encoded

    def find_type_error(self, series: Series) -> InputError | None:
        """Returns an error for text where the training data had numbers, or the reverse; None if there is none."""
        for name, column in series.covariates.items():
            if name in self.numeric and is_text(column):
                return NotANumber(
                    f"Expected numbers in the covariate {name!r}; series {series.id!r} has text. Send numbers.",
                    where=series.id,
                )
            if name in self.categories and not is_text(column):
                return CovariateUnknown(
                    f"Expected text in the covariate {name!r}; series {series.id!r} has numbers. Send category labels (in a "
                    "frame: read the column as text, `text_covariates` of `to_panel`).",
                    where=series.id,
                )
        return None

    def describe_unseen_categories(self, series: Series, *, first: int, last: int) -> Iterator[str]:
        """Yields a warning for each column with categories that were not in the training data, from step `first` to `last`."""
        for name, index in self._category_indices.items():
            labels = dict.fromkeys(_get_covariate(series, name)[first:last].tolist())
            unseen = [repr(label) for label in labels if index.find(label) < 0]
            if unseen:
                listed = ", ".join(unseen[:_MAX_LISTED_LABELS])
                yield (
                    f"The covariate {name!r} has {len(unseen)} categories that were not in the training data: {listed}"
                    f"{' and more' if len(unseen) > _MAX_LISTED_LABELS else ''}. The model reads them as no category; correct "
                    "them, or train a model on data that have them."
                )
        for name, index in self._static_indices.items():
            value = series.static.get(name)
            if value is not None and index.find(value) < 0:
                yield (
                    f"The static feature {name!r} has a category that was not in the training data: {value!r}. The model reads "
                    "it as no category; correct it, or train a model on data that have it."
                )

    def encode_static(self, series: Series) -> Int[np.ndarray, "static"]:
        """Returns the category index of each static feature; 0 if the value is unknown or missing."""
        return np.array(
            [
                1 + index.find(series.static[name]) if name in series.static else 0
                for name, index in self._static_indices.items()
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
        if any(is_text(column) for column in columns):
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


def _drop_zero_decimals(text: str) -> str:
    match = _WHOLE_DECIMAL.fullmatch(text)
    return text if match is None else match[1]
