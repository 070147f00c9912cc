"""The engine of a predictor, by model, device and what is installed."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import save

from forecaster.engines.engine import Engine, EnsembleEngine
from forecaster.engines.kernel import KernelEngine
from forecaster.engines.onnx.export import export_onnx
from forecaster.engines.onnx.runner import OnnxEngine
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.errors import MissingPackage
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.prediction import engine_choice
from forecaster.prediction.engine_choice import choose_engine, choose_sampling_engine, find_kernel_members
from forecaster.prediction.fitted_model import FittedModel, StoredModel
from tests.factories import make_fitted_model, make_network, make_spec

needs_kernel = pytest.mark.skipif(load_compiled_backend() is None, reason="the kernel was not compiled")


def make_model(**fields: Any) -> FittedModel:
    model = make_fitted_model(make_spec(**fields))
    return replace(model, onnx_models=(export_onnx(model.network),))


def store(model: FittedModel) -> StoredModel:
    fields = (model.spec, model.freq, model.season, model.cutoff, model.encoding)
    return StoredModel(*fields, save(model.network.state_dict()), onnx_models=model.onnx_models)


@needs_kernel
def test_the_kernel_comes_first_on_the_cpu() -> None:
    model = make_model()
    for candidate in (model, store(model)):
        assert isinstance(choose_engine(candidate), KernelEngine)
    assert isinstance(choose_engine(model, device="meta"), PyTorchEngine)


@pytest.mark.parametrize("fields", [{"base": "last"}, {"cell": "relu"}])
@pytest.mark.parametrize("is_installed", [True, False])
def test_what_the_kernel_does_not_support_runs_in_onnx_if_stored_and_in_pytorch_in_memory(
    is_installed: bool, fields: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice, "find_spec", lambda name: name if is_installed else None)
    model = make_model(**fields)
    assert isinstance(choose_engine(store(model)), OnnxEngine if is_installed else PyTorchEngine)
    assert isinstance(choose_engine(model), PyTorchEngine)


@needs_kernel
def test_the_kernel_members_of_an_engine_are_those_of_all_members_or_none() -> None:
    spec = make_spec()
    model = replace(make_fitted_model(spec), other_networks=(make_network(spec, seed=2),))
    engine = choose_engine(model)
    assert isinstance(engine, EnsembleEngine)
    members = find_kernel_members(engine)
    assert len(members) == 2
    pytorch_engine: Engine = PyTorchEngine(model.network)
    assert find_kernel_members(members[0]) == [members[0]]
    assert find_kernel_members(EnsembleEngine([members[0], pytorch_engine])) == []
    assert find_kernel_members(pytorch_engine) == []


def test_without_torch_a_network_that_nothing_else_runs_names_the_extra_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = store(make_fitted_model(make_spec(base="last")))  # neither a kernel nor a graph
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackage, match=r"pip install 'recurrent-forecaster\[train\]'\.$") as error:
        choose_engine(stored)
    assert "\n" not in error.value.message


@needs_kernel
def test_sample_paths_that_the_kernel_cannot_draw_are_drawn_by_the_graph_of_a_stored_model() -> None:
    model = make_model(head={"kind": "gaussian"})
    kernel = choose_engine(model)
    assert isinstance(kernel, KernelEngine)
    assert isinstance(choose_sampling_engine(store(model), kernel, device="cpu"), OnnxEngine)
    assert isinstance(choose_sampling_engine(model, kernel, device="cpu"), PyTorchEngine)
