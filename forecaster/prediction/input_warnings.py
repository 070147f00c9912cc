"""Warnings about the input of a forecast that the model can read, but did not learn from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from forecaster.data.partial_periods import EndClock, describe_partial_end
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from forecaster.prediction.scaled_range import ScaledRange, find_scaled_ranges, read_scaled_range
from forecaster.prediction.shape_range import UnfamiliarFeature, find_unfamiliar_features, read_shape_ranges
from forecaster.series import Series


class InputInspector:
    """Describes input that differs from the training data of one fitted model."""

    def __init__(self, fitted_model: FittedModel | StoredModel) -> None:
        self._encoding, self._layout = fitted_model.encoding, fitted_model.layout
        self._spec, self._season = fitted_model.spec, fitted_model.season
        self._learned_range = read_scaled_range(fitted_model.facts)
        self._shape_ranges = read_shape_ranges(fitted_model.facts)

    def describe_batch(
        self, series: Sequence[Series], horizon: int, *, is_constant: Sequence[bool], now: datetime | None = None
    ) -> list[tuple[str, ...]]:
        """Returns the warnings about each of some valid series; constant histories do not reach the network.

        With the present `now`, also about last periods that contain it.
        """
        ranges: Sequence[ScaledRange | None] = (
            [None] * len(series)
            if self._learned_range is None
            else find_scaled_ranges(series, self._spec, season=self._season)
        )
        unfamiliar: Iterable[Sequence[UnfamiliarFeature]] = (
            [()] * len(series)
            if self._shape_ranges is None
            else find_unfamiliar_features([item.y for item in series], self._shape_ranges, season=self._season)
        )
        clock = None if now is None else EndClock(now)
        return [
            (
                *(() if constant else self._describe_range(scaled_range)),
                *(() if constant or item.history_summary is not None else _describe_shape(features)),
                *self._describe_categories(item, horizon),
                *self._describe_partial_end(item, clock),
            )
            for item, scaled_range, features, constant in zip(series, ranges, unfamiliar, is_constant, strict=True)
        ]

    def _describe_range(self, scaled_range: ScaledRange | None) -> Iterator[str]:
        learned = self._learned_range
        if scaled_range is not None and learned is not None and scaled_range.exceeds(learned):
            yield (
                f"The history lies outside the values that the model has learned from: in its scale from {scaled_range.low:.3g} "
                f"to {scaled_range.high:.3g}, the training data from {learned.low:.3g} to {learned.high:.3g}. The forecast is "
                "uncertain; check the history for a wrong sign or unit and for outliers."
            )

    def _describe_partial_end(self, series: Series, clock: EndClock | None) -> Iterator[str]:
        warning = describe_partial_end(series, self._season, clock)
        if warning is not None:
            yield warning

    def _describe_categories(self, series: Series, horizon: int) -> Iterator[str]:
        if self._encoding.categories or self._encoding.static:
            yield from self._encoding.describe_unseen_categories(
                series,
                first=max(0, len(series) - self._layout.window_length(len(series))),
                last=len(series) + horizon,
            )


def _describe_shape(features: Sequence[UnfamiliarFeature]) -> Iterator[str]:
    if features:
        found = "; ".join(feature.describe() for feature in features)
        yield (
            f"The history is unlike all series that the model has learned from: {found}. The forecast is uncertain; compare it "
            "with the last value and the seasonal naive, or train a model on such series."
        )
