"""Which engine rolls a forecaster: the fastest that knows it and is there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from forecaster.engines.engine import Engine, Together
from forecaster.engines.kernel import Plain, plain
from forecaster.prediction.fitted_model import Forecaster, Stored


def graph_engine(forecaster: Forecaster | Stored, *, threads: int = 1) -> Engine | None:
    """The engine that runs the graphs of a forecaster; None if it has none, or onnxruntime is not installed.

    Raises BundleDamaged if onnxruntime cannot run a graph.
    """
    if not forecaster.graphs or find_spec("onnxruntime") is None:
        return None
    from forecaster.engines.onnx.runner import GraphRunner

    return together([GraphRunner(graph, threads=threads) for graph in forecaster.graphs])


def fastest_engine(forecaster: Forecaster | Stored, *, threads: int = 1) -> Engine | None:
    """The fastest engine for a forecaster: the compiled kernel where it knows the network, else its graphs, else None.

    It needs no torch. Raises BundleDamaged as `graph_engine` does, or if the weights cannot be used.
    """
    shared = {"season": forecaster.season, "features": forecaster.features, "threads": threads}
    members = [plain(forecaster.spec, weights, **shared) for weights in forecaster.weights]
    known = [member for member in members if member is not None]
    return together(known) if len(known) == len(members) else graph_engine(forecaster, threads=threads)


def runs_graphs(engine: Engine) -> bool:
    """Whether it is that of `graph_engine`."""
    return not any(isinstance(one, Plain) for one in (engine.members if isinstance(engine, Together) else [engine]))


def together(engines: Sequence[Engine]) -> Engine:
    """One of them, or all as one."""
    return engines[0] if len(engines) == 1 else Together(engines)
