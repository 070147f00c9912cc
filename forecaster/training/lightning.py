"""Lightning, imported without what no training here uses: four of its five seconds.

Lightning imports torch's compiler to recognise compiled modules, and all of torchmetrics, with scipy, for one base class. Here
neither is imported before somebody uses it. All modules of a training import Lightning from this one.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

_COMPILER, _METRICS = "torch._dynamo", "torchmetrics"


class _CompiledModuleType(type):
    """The type of `_CompiledModule`."""

    def __instancecheck__(cls, instance: object) -> bool:
        """Whether an object is a compiled module; there is none before torch's compiler is imported."""
        compiler = sys.modules.get(_COMPILER)
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class _CompiledModule(metaclass=_CompiledModuleType):
    """Stands for `torch._dynamo.OptimizedModule`."""


def _leave_unchanged(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
    """Stands for `torch._dynamo.disable`, for functions that are never compiled."""
    return function


class _LazyModule(types.ModuleType):
    """A module that runs its code only when an attribute is used that it does not have yet."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__dict__.get("_is_complete"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.complete()
        return getattr(self, name)

    def complete(self) -> None:
        """Runs the code of the module, once; it replaces the attributes that the module already has."""
        if not self.__dict__.get("_is_complete"):
            self._is_complete = True
            assert self.__spec__ is not None
            assert self.__spec__.loader is not None
            self.__spec__.loader.exec_module(self)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Lets a placeholder stand for torch's compiler within the block, unless it is imported already."""
    if _COMPILER in sys.modules:
        yield
        return
    placeholder = types.ModuleType(_COMPILER)
    placeholder.__dict__.update(OptimizedModule=_CompiledModule, disable=_leave_unchanged)
    sys.modules[_COMPILER] = placeholder
    try:
        yield
    finally:
        del sys.modules[_COMPILER]


def _defer_plots_of_metrics() -> types.ModuleType:
    """Lets torchmetrics import matplotlib only for a plot of a metric."""
    name = f"{_METRICS}.utilities.plot"
    spec = importlib.util.find_spec(_METRICS)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "utilities" / "plot.py"
    module = _LazyModule(name)

    def plot_single_or_multi_val(*args: Any, **kwargs: Any) -> Any:
        module.complete()
        return module.plot_single_or_multi_val(*args, **kwargs)

    module.__dict__.update(
        __spec__=importlib.util.spec_from_file_location(name, path),
        __file__=str(path),
        _AX_TYPE=object,
        _PLOT_OUT_TYPE=object,
        plot_single_or_multi_val=plot_single_or_multi_val,
    )
    sys.modules[name] = module
    return module


def _import_base_of_metrics() -> None:
    """Imports the parts of torchmetrics that Lightning uses; the rest is imported when it is used."""
    spec = importlib.util.find_spec(_METRICS)
    assert spec is not None
    module = _LazyModule(_METRICS)
    module.__dict__.update(
        __spec__=spec,
        __file__=spec.origin,
        __path__=spec.submodule_search_locations,
        __version__=version(_METRICS),
        _logger=logging.getLogger(_METRICS),
    )
    sys.modules[_METRICS] = module
    plots = _defer_plots_of_metrics()
    utilities = importlib.import_module(f"{_METRICS}.utilities")  # first, as the parts import each other
    utilities.plot = plots  # type: ignore[attr-defined]
    for part, name in (("metric", "Metric"), ("collections", "MetricCollection")):
        setattr(module, name, getattr(importlib.import_module(f"{_METRICS}.{part}"), name))


def _import_lightning() -> None:
    """Imports Lightning without the unused packages; whole, if a version of these packages does not allow it."""
    packages = ("pytorch_lightning", "lightning_fabric", _METRICS)
    if any(name in sys.modules for name in packages):
        return
    try:
        with _without_compiler():
            _import_base_of_metrics()
            importlib.import_module("pytorch_lightning")
    except (AssertionError, AttributeError, ImportError):
        for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
            del sys.modules[name]


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silences Lightning within the block: its hints about hardware, products, loaders and checkpoints, and its warnings."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    # Each of its modules has a logger, whose level is that of these two unless somebody has set it.
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning\.|lightning_fabric\.")
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_import_lightning()

import pytorch_lightning as pl  # noqa: E402
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO  # noqa: E402
from lightning_fabric.utilities.exceptions import MisconfigurationException  # noqa: E402
from lightning_fabric.utilities.warnings import PossibleUserWarning  # noqa: E402
from pytorch_lightning.callbacks import Checkpoint  # noqa: E402
from pytorch_lightning.loggers import Logger  # noqa: E402

__all__ = ["Checkpoint", "Logger", "MisconfigurationException", "TorchCheckpointIO", "pl", "quiet_lightning"]
