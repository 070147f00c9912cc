"""Traces of single units: gates, candidate, cell and hidden state over time, as a table and as an xarray Dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch

from forecaster.data.windows import Window
from forecaster.explain.trace import UnitTrace, trace_units
from forecaster.frequency.timestamps import Timestamps
from forecaster.installation import require_package
from forecaster.model.regressor import Regressor
from forecaster.model.rollout import start_rollout
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from forecaster.shapes import Bool, Float, Int

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False)
class StateTrace:
    """The gates and states of all units of one network while it reads one series.

    A step of the recurrence reads `segment` time points. Its values are those after the last of them.

    Attributes:
        series: The series.
        member: Number of the network among the members of the model, from 1.
        segment: Time points that one step of the recurrence reads.
        indices: For each step, the index in the series of its last time point.
        windows: For each step, the number of the window that it belongs to; a network starts each window from the zero state.
        quantities: The values by name: the gates, `candidate`, `cell` and `hidden`, as far as the cell has them.
    """

    series: Series
    member: int
    segment: int
    indices: Int[np.ndarray, "step"]
    windows: Int[np.ndarray, "step"]
    quantities: Mapping[str, Float[np.ndarray, "layer step unit"]]

    @property
    def id(self) -> str:
        """The id of the series."""
        return self.series.id

    @property
    def ds(self) -> Timestamps:
        """The timestamp of the last time point of each step."""
        return self.series.timestamps[self.indices]

    @property
    def hidden(self) -> Float[np.ndarray, "step unit"]:
        """The hidden states of all layers side by side, lowest layer first."""
        hidden = self.quantities["hidden"]
        return hidden.transpose(1, 0, 2).reshape(hidden.shape[1], -1)


class UnitName(NamedTuple):
    """The place of a unit: the number of its layer and its number within the layer, both from 1."""

    layer: int
    unit: int


def list_units(trace: StateTrace) -> list[UnitName]:
    """Returns the units in the order of `StateTrace.hidden`."""
    layers, _, units = trace.quantities["hidden"].shape
    return [UnitName(layer, unit) for layer in range(1, layers + 1) for unit in range(1, units + 1)]


def trace_states(model: FittedModel, series: Sequence[Series], *, whole_history: bool = False) -> list[StateTrace]:
    """Traces the networks of a model while they read series, exactly as for a forecast.

    Args:
        model: The fitted model, of any kind.
        series: The series.
        whole_history: Whether a network that reads windows is traced over all of a history: in one window after another, each
            ending where the next begins. Otherwise it is traced over the last window alone, from which it forecasts. A network
            that reads histories is always traced over the whole history.
    Returns:
        One trace for each series and member; padding has no steps.
    Raises:
        ForecasterError: The class of the error with which a forecast of the series would fail.
    """
    predictor = Predictor(model)
    for item in series:
        error = predictor.find_error(item, 1)
        if error is not None:
            raise error
    return [
        _trace_network(network.eval(), predictor, item, member=member, whole_history=whole_history)
        for item in series
        for member, network in enumerate(model.networks, start=1)
    ]


class _WindowTrace(NamedTuple):
    """The steps of one window."""

    indices: Int[np.ndarray, "step"]
    quantities: Mapping[str, Float[np.ndarray, "layer step unit"]]


def build_network_window(predictor: Predictor, series: Series) -> Window:
    """Returns the window of one row from which a series is forecast."""
    inputs = predictor.build_input(series, 1)
    return Window(*(None if array is None else torch.from_numpy(array) for array in inputs[:4]))  # type: ignore[arg-type]


def _trace_network(
    network: Regressor, predictor: Predictor, series: Series, *, member: int, whole_history: bool
) -> StateTrace:
    num_windows = 1
    if whole_history and network.reads == "window":
        min_steps = predictor.fitted_model.spec.min_steps
        num_windows = max(1, 1 + (len(series) - min_steps) // network.context)
    windows = [
        _trace_window(network, predictor, series.take_first(len(series) - back * network.context))
        for back in reversed(range(num_windows))
    ]
    return StateTrace(
        series,
        member,
        network.segment,
        np.concatenate([window.indices for window in windows]),
        np.repeat(np.arange(num_windows), [len(window.indices) for window in windows]),
        {
            name: np.concatenate([window.quantities[name] for window in windows], axis=1)
            for name in windows[0].quantities
        },
    )


def _trace_window(network: Regressor, predictor: Predictor, series: Series) -> _WindowTrace:
    state, window = start_rollout(network, build_network_window(predictor, series))
    with torch.no_grad():
        layers = trace_units(network, window, state)
    steps = len(layers[0].hidden)
    indices = len(series) - 1 - network.segment * np.arange(steps)[::-1]
    is_read = (indices >= 0) & ~np.isnan(layers[0].hidden.numpy()[:, 0])
    return _WindowTrace(indices[is_read], _stack_layers(layers, is_read))


def _stack_layers(
    layers: Sequence[UnitTrace], is_read: Bool[np.ndarray, "segment"]
) -> dict[str, Float[np.ndarray, "layer step unit"]]:
    quantities = {}
    for name in list_quantities(layers[0]):
        values = np.stack([dict(_iterate_quantities(layer))[name].numpy() for layer in layers])
        quantities[name] = values[:, is_read]
    return quantities


def list_quantities(trace: UnitTrace) -> list[str]:
    """Returns the names of what a cell of this kind has: its gates, `candidate`, `cell` and `hidden`."""
    return [name for name, _ in _iterate_quantities(trace)]


def _iterate_quantities(trace: UnitTrace) -> Iterator[tuple[str, torch.Tensor]]:
    yield from trace.gates.items()
    for name, values in (("candidate", trace.candidate), ("cell", trace.cell), ("hidden", trace.hidden)):
        if values is not None:
            yield name, values


def build_state_table(traces: Sequence[StateTrace]) -> pd.DataFrame:
    """Returns one row per value: `unique_id, ds, layer, unit, quantity, value`, and `member` of a model with several."""
    tables = []
    for trace in traces:
        ds = trace.ds
        for quantity, values in trace.quantities.items():
            layers, steps, units = values.shape
            tables.append(
                pd.DataFrame(
                    {
                        "unique_id": trace.id,
                        "member": trace.member,
                        "ds": ds[np.tile(np.repeat(np.arange(steps), units), layers)],
                        "layer": np.repeat(np.arange(1, layers + 1), steps * units),
                        "unit": np.tile(np.arange(1, units + 1), layers * steps),
                        "quantity": quantity,
                        "value": values.reshape(-1),
                    }
                )
            )
    table = pd.concat(tables, ignore_index=True)
    return table if table["member"].nunique() > 1 else table.drop(columns="member")


def build_state_dataset(traces: Sequence[StateTrace]) -> xarray.Dataset:
    """Returns an xarray Dataset with one variable per quantity, over `unique_id, member, ds, layer, unit`.

    NaN marks the timestamps of other series. Raises MissingPackage if xarray, which the extra `explain` brings, is not installed.
    """
    require_package("xarray", purpose="states as a Dataset")
    import xarray

    ids = list(dict.fromkeys(trace.id for trace in traces))
    members = sorted({trace.member for trace in traces})
    ds: Timestamps = traces[0].ds
    for trace in traces[1:]:
        ds = ds.union(trace.ds)
    variables = {}
    for quantity, values in traces[0].quantities.items():
        layers, _, units = values.shape
        cube = np.full((len(ids), len(members), len(ds), layers, units), np.nan, dtype=np.float32)
        for trace in traces:
            positions = ds.get_indexer(trace.ds)
            cube[ids.index(trace.id), members.index(trace.member), positions] = trace.quantities[quantity].transpose(
                1, 0, 2
            )
        variables[quantity] = (("unique_id", "member", "ds", "layer", "unit"), cube)
    layers, _, units = traces[0].quantities["hidden"].shape
    zone = None
    if isinstance(ds, pd.DatetimeIndex) and ds.tz is not None:  # xarray has no timestamps with a zone
        zone, ds = ds.tz, ds.tz_convert("UTC").tz_localize(None)
    coordinates = {
        "unique_id": ids,
        "member": members,
        "ds": ds,
        "layer": np.arange(1, layers + 1),
        "unit": np.arange(1, units + 1),
    }
    attributes = {"segment": traces[0].segment} | ({} if zone is None else {"time_zone_of_ds": "UTC"})
    return xarray.Dataset(variables, coords=coordinates, attrs=attributes)
