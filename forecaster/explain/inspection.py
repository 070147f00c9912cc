"""Everything that a report about one forecast and its network shows: forecast, attributions, memory, atlas, similar stretches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from forecaster.explain.atlas import Atlas, build_atlas
from forecaster.explain.attribution import Explanation
from forecaster.explain.memory import MemoryDecay, measure_memory
from forecaster.explain.similar import SimilarStretches, find_similar
from forecaster.explain.states import StateTrace, trace_states
from forecaster.frequency.timestamps import Timestamp
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series

MAX_SERIES = 64  # series whose states are traced; the explained one and others at equal distances in the data
_LEVELS = (0.025, 0.1, 0.9, 0.975)


class Stretch(NamedTuple):
    """A stretch of a series: its first timestamp, and the one after it."""

    start: Timestamp
    end: Timestamp


class Inspection(NamedTuple):
    """What the report shows.

    Attributes:
        model: The model.
        series: The explained series.
        forecast: Its forecast, with intervals if the model has them.
        explanation: The attributions and gates.
        decays: The memory of each member.
        traces: The traced states, over whole histories.
        atlas: What the units follow over the traced series.
        similar: The stretches like a selected one; None if none was selected.
        num_available: Number of series in the data, of which at most MAX_SERIES are traced.
    """

    model: FittedModel
    series: Series
    forecast: Forecast
    explanation: Explanation
    decays: Sequence[MemoryDecay]
    traces: Sequence[StateTrace]
    atlas: Atlas
    similar: SimilarStretches | None
    num_available: int

    @property
    def num_traced(self) -> int:
        """Number of traced series."""
        return len({trace.id for trace in self.traces})


def select_series(model: FittedModel, available: Sequence[Series], explained: Series) -> list[Series]:
    """Returns the series to trace: the explained one first, and others at equal distances that the model can forecast."""
    predictor = Predictor(model)
    others = [item for item in available if item.id != explained.id]
    if len(others) >= MAX_SERIES:
        chosen = np.unique(np.linspace(0, len(others) - 1, MAX_SERIES - 1).round().astype(int))
        others = [others[index] for index in chosen.tolist()]
    return [explained, *(item for item in others if predictor.find_error(item, 1) is None)]


def inspect_forecast(
    model: FittedModel,
    available: Sequence[Series],
    explained: Series,
    explanation: Explanation,
    *,
    stretch: Stretch | None = None,
) -> Inspection:
    """Collects what a report shows; raises the errors of the forecast and of `find_similar`.

    Args:
        model: The fitted model.
        available: All series of the data.
        explained: The series whose forecast is explained.
        explanation: Its explanation.
        stretch: A stretch of the explained series whose like is to be found in others.
    """
    predictor = Predictor(model)
    forecast = predictor.forecast(explained, explanation.horizon, levels=_LEVELS if predictor.has_quantiles else ())
    traces = trace_states(model, select_series(model, available, explained), whole_history=True)
    similar = None
    if stretch is not None:
        similar = find_similar(traces, explained.id, start=stretch.start, end=stretch.end)
    return Inspection(
        model,
        explained,
        forecast,
        explanation,
        measure_memory(model, explained),
        traces,
        build_atlas(traces, season=model.season),
        similar,
        len(available),
    )
