"""The choice of the engine for a fitted model: the fastest that supports it and is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

from forecaster.engines.engine import Engine, EnsembleEngine
from forecaster.engines.kernel import KernelEngine, build_kernel_engine
from forecaster.prediction.fitted_model import FittedModel, StoredModel


def build_onnx_engine(fitted_model: FittedModel | StoredModel, *, threads: int = 1) -> Engine | None:
    """Builds the engine for the ONNX models of a fitted model; None if it has none, or if onnxruntime is not installed.

    Raises BundleDamaged if onnxruntime cannot load a model, or if it is that of another network.
    """
    if not fitted_model.onnx_models or find_spec("onnxruntime") is None:
        return None
    from forecaster.engines.onnx.runner import OnnxEngine

    engines = [OnnxEngine(onnx_model, threads=threads) for onnx_model in fitted_model.onnx_models]
    encoding = fitted_model.encoding
    for engine in engines:
        engine.validate_sizes(
            fitted_model.layout, num_covariates=encoding.num_covariates, num_static=len(encoding.static)
        )
    return combine_engines(engines)


def build_fastest_engine(fitted_model: FittedModel | StoredModel, *, threads: int = 1) -> Engine | None:
    """Builds the fastest engine for a fitted model: the compiled kernel if it supports the networks, else ONNX, else None.

    Does not import torch. Raises BundleDamaged as `build_onnx_engine` does, or if the weights are invalid.
    """
    arguments = {"season": fitted_model.season, "num_features": fitted_model.num_features, "threads": threads}
    members = [build_kernel_engine(fitted_model.spec, weights, **arguments) for weights in fitted_model.weights]
    engines = [member for member in members if member is not None]
    if len(engines) < len(members):
        return build_onnx_engine(fitted_model, threads=threads)
    return combine_engines(engines)


@contextmanager
def limit_run_time(engine: Engine | None, *, seconds: float) -> Iterator[None]:
    """Makes the ONNX models of an engine fail within the block after some seconds; other engines always end."""
    members = engine.members if isinstance(engine, EnsembleEngine) else [engine]
    with ExitStack() as stack:
        for member in members:
            time_limit = getattr(member, "time_limit", None)  # only that of an OnnxEngine, which is imported on demand
            if time_limit is not None:
                stack.enter_context(time_limit(seconds))
        yield


def is_onnx_engine(engine: Engine) -> bool:
    """Whether an engine of `build_fastest_engine` runs ONNX models."""
    members = engine.members if isinstance(engine, EnsembleEngine) else [engine]
    return not any(isinstance(member, KernelEngine) for member in members)


def combine_engines(engines: Sequence[Engine]) -> Engine:
    """Returns the single engine, or the ensemble of several."""
    return engines[0] if len(engines) == 1 else EnsembleEngine(engines)
