"""The choice of the engine for a fitted model, in one place; a Predictor without an explicit engine takes this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

from forecaster.engines.engine import Engine, EnsembleEngine
from forecaster.engines.kernel import KernelEngine, build_kernel_engine
from forecaster.engines.running.engine import build_running_engine
from forecaster.installation import require_package
from forecaster.prediction.fitted_model import FittedModel, StoredModel


def choose_engine(fitted_model: FittedModel | StoredModel, *, device: str = "cpu") -> Engine:
    """Chooses the fastest engine that supports a fitted model and is installed.

    1. The compiled kernel, for plain networks on the CPU: it is the fastest for any number of rows.
    2. The engine of networks with a running scale and a block decoder, on the CPU: in the kernel, or in numpy.
    3. The ONNX models of a stored model: the fastest for few rows, as in requests, and torch is not imported.
    4. PyTorch, for everything else. It is faster than ONNX for many rows, as in the backtests of a model in memory.

    Raises BundleDamaged if the weights are invalid, or if onnxruntime cannot load a model, and MissingPackage if only PyTorch
    supports the model and it is not installed.
    """
    array_engine = _build_array_engine(fitted_model) if device == "cpu" else None
    onnx_engine = None
    if array_engine is None and isinstance(fitted_model, StoredModel):
        onnx_engine = build_onnx_engine(fitted_model)
    return array_engine or onnx_engine or build_pytorch_engine(fitted_model, device=device)


def build_onnx_engine(fitted_model: FittedModel | StoredModel) -> Engine | None:
    """Builds the engine for the ONNX models of a fitted model; None if it has none, or if onnxruntime is not installed.

    Raises BundleDamaged if onnxruntime cannot load a model, or if it is that of another network.
    """
    if not can_run_onnx(fitted_model):
        return None
    from forecaster.engines.onnx.runner import OnnxEngine

    engines = [OnnxEngine(onnx_model) for onnx_model in fitted_model.onnx_models]
    encoding = fitted_model.encoding
    for engine in engines:
        engine.validate_sizes(
            fitted_model.layout, num_covariates=encoding.num_covariates, num_static=len(encoding.static)
        )
    return combine_engines(engines)


def can_run_onnx(fitted_model: FittedModel | StoredModel) -> bool:
    """Returns whether a fitted model has ONNX models, and onnxruntime is installed."""
    return bool(fitted_model.onnx_models) and find_spec("onnxruntime") is not None


def build_pytorch_engine(fitted_model: FittedModel | StoredModel, *, device: str) -> Engine:
    """Builds the engine in PyTorch, which supports every network. Raises MissingPackage if torch is not installed."""
    require_package("torch", purpose=f"the model {fitted_model.spec.name!r}, which has no ONNX graph for this forecast")
    from forecaster.engines.pytorch import PyTorchEngine

    return combine_engines([PyTorchEngine(network, device=device) for network in fitted_model.networks])


def find_kernel_members(engine: Engine) -> list[KernelEngine]:
    """Returns the kernel engine of each member; empty for another engine."""
    members = engine.members if isinstance(engine, EnsembleEngine) else (engine,)
    kernel_members = [member for member in members if isinstance(member, KernelEngine)]
    return kernel_members if len(kernel_members) == len(members) else []


@contextmanager
def limit_run_time(engine: Engine, *, seconds: float) -> Iterator[None]:
    """Makes the ONNX models of an engine fail within the block after some seconds; other engines always end."""
    members = engine.members if isinstance(engine, EnsembleEngine) else [engine]
    with ExitStack() as stack:
        for member in members:
            time_limit = getattr(member, "time_limit", None)  # only that of an OnnxEngine, which is imported on demand
            if time_limit is not None:
                stack.enter_context(time_limit(seconds))
        yield


def choose_sampling_engine(fitted_model: FittedModel | StoredModel, engine: Engine, *, device: str) -> Engine:
    """Chooses the engine that draws sample paths: the given one, then the ONNX models of a stored model, then PyTorch.

    Raises as `choose_engine` does.
    """
    if engine.can_sample:
        return engine
    onnx_engine = build_onnx_engine(fitted_model) if isinstance(fitted_model, StoredModel) else None
    if onnx_engine is not None and onnx_engine.can_sample:
        return onnx_engine
    return build_pytorch_engine(fitted_model, device=device)


def at_temperature(engine: Engine, temperature: float) -> Engine:
    """Returns an engine of symbols that draws at a temperature."""
    from forecaster.engines.pytorch import PyTorchEngine

    assert isinstance(engine, PyTorchEngine), "only PyTorch runs networks of symbols"
    return engine.at_temperature(temperature)


def combine_engines(engines: Sequence[Engine]) -> Engine:
    """Returns the single engine, or the ensemble of several."""
    return engines[0] if len(engines) == 1 else EnsembleEngine(engines)


def _build_array_engine(fitted_model: FittedModel | StoredModel) -> Engine | None:
    """Builds the engine that computes from numpy arrays alone; None if none supports the networks."""
    if fitted_model.spec.scaling == "running":
        return _combine_members(
            build_running_engine(
                fitted_model.spec, weights, season=fitted_model.season, num_features=fitted_model.num_features
            )
            for weights in fitted_model.weights
        )
    threads = 1  # a server's workers share the cores
    if isinstance(fitted_model, FittedModel):
        import torch

        threads = torch.get_num_threads()
    season, num_features = fitted_model.season, fitted_model.num_features
    return _combine_members(
        build_kernel_engine(fitted_model.spec, weights, season=season, num_features=num_features, threads=threads)
        for weights in fitted_model.weights
    )


def _combine_members(members: Iterable[Engine | None]) -> Engine | None:
    engines = []
    for member in members:
        if member is None:
            return None
        engines.append(member)
    return combine_engines(engines)
