"""Traces of single units: equal to a step-by-step pass for every kind of network, and complete as a table and a Dataset."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from forecaster.errors import HistoryTooShort, MissingPackage
from forecaster.explain.states import build_network_window, build_state_dataset, build_state_table, trace_states
from forecaster.model.rollout import start_rollout, warm_up
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from forecaster.spec import Spec
from tests.factories import START, make_fitted_model, make_network, make_series, make_spec, make_wave

KINDS = {
    "gru": {},
    "lstm of two layers": {"cell": "lstm", "layers": 2},
    "elman": {"cell": "elman"},
    "dilated": {"cell": "lstm", "layers": 2, "dilations": (1, 3)},
    "segments": {"segment": 4, "decoder": "direct"},
    "channels": {"channels": ["b"]},
    "running scale": {
        "cell": "lstm",
        "layers": 2,
        "embed": True,
        "residual": True,
        "scaling": "running",
        "features": "seasonal",
        "base": "mixture",
        "decoder": "block",
        "reads": "history",
        "segment": 2,
    },
}
QUANTITIES = {
    "gru": ["reset", "update", "candidate", "hidden"],
    "lstm": ["input", "forget", "output", "candidate", "cell", "hidden"],
    "elman": ["hidden"],
}


def make_model(name: str) -> FittedModel:
    fields = dict(KINDS[name])
    network = {key: fields.pop(key) for key in ("dilations", "embed", "residual") if key in fields}
    values = make_spec(**fields).model_dump()  # type: ignore[arg-type]
    return make_fitted_model(Spec.parse(values | {"network": values["network"] | network}, where="a test"))


def make_long_series(steps: int = 40) -> Series:
    return Series("a", START, "h", make_wave(steps), channels={"b": make_wave(steps, seed=3)})


@pytest.mark.parametrize("name", KINDS)
def test_every_unit_has_the_states_of_a_step_by_step_pass(name: str) -> None:
    model, series = make_model(name), make_long_series()
    if name != "channels":
        series = replace(series, channels={})
    [trace] = trace_states(model, [series])
    assert list(trace.quantities) == QUANTITIES[model.spec.network.cell]
    network = model.network
    with torch.no_grad():
        state, window = start_rollout(network, build_network_window(Predictor(model), series))
        slots = np.cumsum(network.recurrent.dilations) - 1  # slots of the latest step
        for step in range(window.values.shape[1] // network.segment):
            part = window.slice_steps(slice(step * network.segment, (step + 1) * network.segment))
            state = warm_up(network, part, state)
            hidden, cell = state.recurrent_state
            np.testing.assert_allclose(trace.quantities["hidden"][:, step], hidden[slots, 0], atol=1e-5)
            if cell is not None:
                np.testing.assert_allclose(trace.quantities["cell"][:, step], cell[slots, 0], atol=1e-5)
    assert trace.ds[-1] == series.end


def test_gates_and_candidates_give_the_next_state() -> None:
    [gru] = trace_states(make_model("gru"), [make_series(make_wave(16))])
    update, candidate, hidden = (gru.quantities[name][:, 1:] for name in ("update", "candidate", "hidden"))
    previous = gru.quantities["hidden"][:, :-1]
    np.testing.assert_allclose(hidden, (1 - update) * candidate + update * previous, atol=1e-5)
    [lstm] = trace_states(make_model("lstm of two layers"), [make_series(make_wave(16))])
    parts = {name: values[:, 1:] for name, values in lstm.quantities.items()}
    cell = parts["forget"] * lstm.quantities["cell"][:, :-1] + parts["input"] * parts["candidate"]
    np.testing.assert_allclose(parts["cell"], cell, atol=1e-5)
    np.testing.assert_allclose(parts["hidden"], parts["output"] * np.tanh(cell), atol=1e-5)


def test_the_whole_history_is_read_in_windows_as_a_forecast_at_the_end_of_each_would() -> None:
    model, series = make_model("gru"), make_long_series()
    [trace] = trace_states(model, [series], whole_history=True)
    np.testing.assert_array_equal(trace.indices, np.arange(40))
    np.testing.assert_array_equal(np.bincount(trace.windows), [8, 16, 16])
    for window, length in enumerate((8, 24, 40)):
        [own] = trace_states(model, [series.take_first(length)])
        np.testing.assert_array_equal(own.hidden, trace.hidden[trace.windows == window])


def test_padding_and_steps_before_the_first_observation_have_no_state() -> None:
    y = make_wave(10)
    y[:3] = np.nan
    [trace] = trace_states(make_model("gru"), [make_series(y)])
    np.testing.assert_array_equal(trace.indices, np.arange(3, 10))
    assert np.isfinite(trace.hidden).all()
    with pytest.raises(HistoryTooShort):
        trace_states(make_model("gru"), [make_series(make_wave(2))])


def test_the_table_has_one_row_per_value_and_members_where_there_are_several() -> None:
    spec = make_spec(segment=4, decoder="direct")
    model = replace(make_fitted_model(spec), other_networks=(make_network(spec, seed=2),))
    traces = trace_states(model, [make_series(make_wave(16), name="x"), make_series(make_wave(16, seed=1), name="y")])
    table = build_state_table(traces)
    assert list(table) == ["unique_id", "member", "ds", "layer", "unit", "quantity", "value"]
    assert len(table) == 2 * 2 * 4 * 6 * 4, "series, members, segments, units, quantities"
    assert not table.duplicated(["unique_id", "member", "ds", "layer", "unit", "quantity"]).any()
    row = table.query("unique_id == 'y' and member == 2 and unit == 5 and quantity == 'hidden'").iloc[-1]
    assert row["value"] == traces[3].hidden[-1, 4]
    assert row["ds"] == START + pd.Timedelta(hours=15)
    assert "member" not in build_state_table(traces[:1])


def test_the_dataset_aligns_series_on_their_timestamps() -> None:
    pytest.importorskip("xarray")
    late = Series("late", START + pd.Timedelta(hours=4), "h", make_wave(14))
    traces = trace_states(make_model("lstm of two layers"), [make_series(make_wave(16), name="early"), late])
    dataset = build_state_dataset(traces)
    assert dict(dataset.sizes) == {"unique_id": 2, "member": 1, "ds": 18, "layer": 2, "unit": 6}
    assert set(dataset) == {"input", "forget", "output", "candidate", "cell", "hidden"}
    values = dataset["cell"].sel(unique_id="late", member=1, layer=2, unit=3)
    np.testing.assert_array_equal(values.dropna("ds"), traces[1].quantities["cell"][1, :, 2])
    assert bool(values.isel(ds=slice(4)).isnull().all())


def test_a_missing_xarray_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(sys.modules["forecaster.installation"], "import_module", refuse)
    with pytest.raises(MissingPackage, match=r"recurrent-forecaster\[explain\]"):
        build_state_dataset(trace_states(make_model("gru"), [make_series(make_wave(16))]))
