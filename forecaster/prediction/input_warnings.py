"""Warnings about the input of a forecast that the model can read, but did not learn from."""

from __future__ import annotations

from collections.abc import Iterator

from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.series import Series


class InputInspector:
    """Describes input that differs from the training data of one fitted model."""

    def __init__(self, fitted_model: FittedModel | StoredModel) -> None:
        self._encoding, self._layout = fitted_model.encoding, fitted_model.layout

    def describe(self, series: Series, horizon: int) -> Iterator[str]:
        """Yields the warnings about a valid series."""
        if self._encoding.categories or self._encoding.static:
            yield from self._encoding.describe_unseen_categories(
                series,
                first=max(0, len(series) - self._layout.window_length(len(series))),
                last=len(series) + horizon,
            )
