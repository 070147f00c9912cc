"""Which engine rolls a forecaster: the fastest that knows it and is there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from forecaster.engines.engine import Engine, EnsembleEngine
from forecaster.engines.kernel import KernelEngine, build_kernel_engine
from forecaster.prediction.fitted_model import FittedModel, StoredModel


def build_onnx_engine(fitted_model: FittedModel | StoredModel, *, threads: int = 1) -> Engine | None:
    """The engine that runs the graphs of a forecaster; None if it has none, or onnxruntime is not installed.

    Raises BundleDamaged if onnxruntime cannot run a graph.
    """
    if not fitted_model.onnx_models or find_spec("onnxruntime") is None:
        return None
    from forecaster.engines.onnx.runner import OnnxEngine

    return combine_engines([OnnxEngine(graph, threads=threads) for graph in fitted_model.onnx_models])


def build_fastest_engine(fitted_model: FittedModel | StoredModel, *, threads: int = 1) -> Engine | None:
    """The fastest engine for a forecaster: the compiled kernel where it knows the network, else its graphs, else None.

    It needs no torch. Raises BundleDamaged as `build_onnx_engine` does, or if the weights cannot be used.
    """
    shared = {"season": fitted_model.season, "num_features": fitted_model.num_features, "threads": threads}
    members = [build_kernel_engine(fitted_model.spec, weights, **shared) for weights in fitted_model.weights]
    known = [member for member in members if member is not None]
    return combine_engines(known) if len(known) == len(members) else build_onnx_engine(fitted_model, threads=threads)


def is_onnx_engine(engine: Engine) -> bool:
    """Whether it is that of `build_onnx_engine`."""
    return not any(
        isinstance(one, KernelEngine) for one in (engine.members if isinstance(engine, EnsembleEngine) else [engine])
    )


def combine_engines(engines: Sequence[Engine]) -> Engine:
    """One of them, or all as one."""
    return engines[0] if len(engines) == 1 else EnsembleEngine(engines)
