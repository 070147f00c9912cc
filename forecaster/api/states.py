"""The states of a network while it reads series: tables, half-lives, what the units follow, and similar moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forecaster.api.frames import FrameStyle
from forecaster.api.messages import warn_about_data
from forecaster.api.reading import PanelInput, select_ids
from forecaster.errors import InputError
from forecaster.prediction.fitted_model import FittedModel, as_fitted_model
from forecaster.prediction.predictor import Predictor

if TYPE_CHECKING:
    import xarray

    from forecaster.explain.atlas import Atlas
    from forecaster.explain.states import StateTrace


@dataclass(frozen=True, eq=False)
class NetworkStates:
    """The gates, candidates, cell and hidden states of every unit while the network read series; see `Forecaster.trace`.

    Attributes:
        traces: The traces of all series and members (`forecaster.explain.states`).
        model: The model.
    """

    traces: Sequence[StateTrace]
    model: FittedModel
    _style: FrameStyle

    def to_frame(self) -> Any:
        """Returns one row per value: `unique_id, ds, layer, unit, quantity, value`, and `member` of a model with several."""
        from forecaster.explain.states import build_state_table

        return self._style.convert(build_state_table(self.traces))

    def to_xarray(self) -> xarray.Dataset:
        """Returns an xarray Dataset with one variable per quantity, over `unique_id, member, ds, layer, unit`.

        Raises MissingPackage if xarray, which the extra `explain` brings, is not installed.
        """
        from forecaster.explain.states import build_state_dataset

        return build_state_dataset(self.traces)

    def half_lives(self) -> Any:
        """Returns the half-life of the memory of every unit: `unique_id, member, layer, unit, half_life, window`, in steps.

        An infinite half-life exceeds the window over which it was measured. `forecaster.explain.memory` defines it.
        """
        from forecaster.explain.memory import build_memory_table, measure_memory

        series = {trace.id: trace.series for trace in self.traces}
        decays = [decay for item in series.values() for decay in measure_memory(self.model, item)]
        return self._style.convert(build_memory_table(decays))

    def atlas(self, *, rate: float = 0.05) -> Atlas:
        """Returns which reference signals the units follow over the series, beside a baseline of chance.

        Args:
            rate: Probability that anything at all is reported by chance.
        """
        from forecaster.explain.atlas import build_atlas

        if not 0 < rate < 1:
            raise InputError(
                f"Expected `rate` between 0 and 1; found {rate!r}. Write 0.05 for one chance in twenty.",
                where="rate",
            )
        return build_atlas(self.traces, season=self.model.season, rate=rate)

    def similar(self, unique_id: Any, start: Any, end: Any, *, threshold: float = 0.5) -> Any:
        """Finds the stretches of other series at which the same units are on as throughout [start, end) of one series.

        Args:
            unique_id: The series.
            start, end: The first timestamp of the stretch, and the one after it.
            threshold: Standard deviations from the mean of a unit beyond which it is on.
        Returns:
            A frame, the closest first: `unique_id, start, end, shared, selected, extra, chance`.
        Raises:
            BadId: The series was not traced.
            InputError: The stretch is not in the trace, or no unit is on throughout it.
        """
        from forecaster.explain.similar import build_match_table, find_similar, parse_bounds

        text = str(unique_id)
        series = next((trace.series for trace in self.traces if trace.id == text), self.traces[0].series)
        first, last = parse_bounds(series, start, end)
        found = find_similar(self.traces, text, start=first, end=last, threshold=threshold)
        return self._style.convert(build_match_table(found))

    def __repr__(self) -> str:
        ids = {trace.id for trace in self.traces}
        layers, _, units = self.traces[0].quantities["hidden"].shape
        steps = sum(len(trace.indices) for trace in self.traces)
        return (
            f"NetworkStates of {len(ids)} series: {layers} layers of {units} units, {steps} steps. Use .to_frame(), "
            ".to_xarray(), .half_lives(), .atlas() and .similar()."
        )


def trace_network(predictor: Predictor, data: PanelInput, unique_id: Any, *, whole_history: bool) -> NetworkStates:
    """Traces the networks of a predictor while they read series of a panel.

    Series that cannot be forecast are left out with a `DataWarning`; if there is no other, the error of the first is raised.

    Args:
        predictor: The predictor.
        data: The histories.
        unique_id: The series, one id or several; None for all.
        whole_history: Whether a network that reads windows is traced over all of a history.
    """
    from forecaster.explain.states import trace_states

    available = [item.id for item in data.panel.series]
    chosen = set(select_ids(available, unique_id, max_ids=len(available), argument="unique_id"))
    requested = [item for item in data.panel.series if item.id in chosen]
    errors = [predictor.find_error(item, 1) for item in requested]
    series = [item for item, error in zip(requested, errors, strict=True) if error is None]
    failed = [error for error in errors if error is not None]
    if not series:
        raise failed[0]
    if failed:
        warn_about_data([f"{len(failed)} of {len(requested)} series were left out. {failed[0].message}"])
    model = as_fitted_model(predictor.fitted_model)
    return NetworkStates(trace_states(model, series, whole_history=whole_history), model, data.style)
