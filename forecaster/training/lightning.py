"""Lightning, imported without what no training here uses: four of its five seconds.

Lightning imports torch's compiler to recognise compiled modules, and all of torchmetrics, with scipy, for one base class. Here
neither is imported before somebody uses it. All modules of a training import Lightning from this one.

Other code of the process does not notice: `torch._dynamo` has a placeholder during the import alone, and only for the thread that
imports; `torchmetrics` is the module itself, which runs the rest of its code when an attribute is used that it does not have yet.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

_COMPILER, _METRICS = "torch._dynamo", "torchmetrics"


class _UnimportedType(type):
    """The type of a class that stands for one of a module that may not be imported yet."""

    module: str
    name: str

    def __instancecheck__(cls, instance: object) -> bool:
        """Whether an object is an instance of the real class; there is none before its module is imported."""
        real = getattr(sys.modules.get(cls.module), cls.name, None)
        return isinstance(real, type) and real is not cls and isinstance(instance, real)


class _OptimizedModule(metaclass=_UnimportedType):
    """Stands for the class of compiled modules."""

    module, name = _COMPILER, "OptimizedModule"


class _Axes(metaclass=_UnimportedType):
    """Stands for the class of the axes in which torchmetrics draws."""

    module, name = "matplotlib.axes", "Axes"


def _disable_when_imported(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """Stands for `torch._dynamo.disable`: excludes a function from compilation, which cannot begin before the import."""
    if not callable(function):
        raise TypeError("Expected a function to exclude from compilation.")
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*call_args: Any, **call_kwargs: Any) -> Any:
        if _COMPILER not in sys.modules:
            return function(*call_args, **call_kwargs)
        if not disabled:
            disabled.append(importlib.import_module(_COMPILER).disable(function, *args, **kwargs))
        return disabled[0](*call_args, **call_kwargs)

    return call


class _CompilerPlaceholder(types.ModuleType):
    """Stands for torch's compiler in the thread that imports Lightning; any other thread gets the attributes of the real one."""

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        self._importing_thread = threading.get_ident()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(_COMPILER) is self and threading.get_ident() == self._importing_thread:
            stand_ins = {"OptimizedModule": _OptimizedModule, "disable": _disable_when_imported}
            if name not in stand_ins:
                raise AttributeError(f"the placeholder of {_COMPILER} has no attribute {name!r}")
            return stand_ins[name]
        self.remove()
        return getattr(importlib.import_module(_COMPILER), name)

    def remove(self) -> None:
        """Lets the next import of the compiler find the real one."""
        with self._lock:
            if sys.modules.get(_COMPILER) is self:
                del sys.modules[_COMPILER]


class _LazyModule(types.ModuleType):
    """A module that runs its code when an attribute is used that it does not have yet."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._lock = threading.RLock()
        self._is_run = False

    def __getattr__(self, name: str) -> Any:
        # Python asks for `__path__` at every import from a module; a package has it from the start.
        if name != "__path__":
            self.run()
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def __dir__(self) -> list[str]:
        self.run()
        return list(super().__dir__())

    def run(self) -> None:
        """Runs the code of the module, once; it replaces the attributes that the module already has.

        Another thread waits until the code has ended. Code that fails is run again by the next use.
        """
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        with self._lock:
            if self._is_run:  # or is being run by this thread
                return
            self._is_run = True
            try:
                spec.loader.exec_module(self)
            except BaseException:
                self._is_run = False
                raise


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Lets a placeholder stand for torch's compiler within the block, unless it is imported already."""
    if _COMPILER in sys.modules:
        yield
        return
    placeholder = _CompilerPlaceholder()
    sys.modules[_COMPILER] = placeholder
    try:
        yield
    finally:
        placeholder.remove()


def _defer_plots_of_metrics() -> types.ModuleType:
    """Lets torchmetrics import matplotlib only for a plot of a metric."""
    name = f"{_METRICS}.utilities.plot"
    spec = importlib.util.find_spec(_METRICS)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "utilities" / "plot.py"
    module = _LazyModule(name)

    def plot_single_or_multi_val(*args: Any, **kwargs: Any) -> Any:
        module.run()
        return module.plot_single_or_multi_val(*args, **kwargs)

    module.__dict__.update(
        __spec__=importlib.util.spec_from_file_location(name, path),
        __file__=str(path),
        _AX_TYPE=_Axes,
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
    except Exception:  # other versions of these packages may differ; the import below is that of the whole packages
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


@contextmanager
def keep_interrupts() -> Iterator[None]:
    """Lets an interrupt of the block raise KeyboardInterrupt; Lightning turns it into an exit, and ignores the next one."""
    interrupt_handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as exit_error:
        if isinstance(exit_error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, interrupt_handler)
            raise exit_error.__context__ from None
        raise


_import_lightning()

import pytorch_lightning as pl  # noqa: E402
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment  # noqa: E402
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO  # noqa: E402
from lightning_fabric.utilities.exceptions import MisconfigurationException  # noqa: E402
from lightning_fabric.utilities.warnings import PossibleUserWarning  # noqa: E402
from pytorch_lightning.callbacks import Checkpoint  # noqa: E402
from pytorch_lightning.loggers import Logger  # noqa: E402
from pytorch_lightning.strategies import DDPStrategy  # noqa: E402

__all__ = [
    "Checkpoint",
    "ClusterEnvironment",
    "DDPStrategy",
    "Logger",
    "MisconfigurationException",
    "TorchCheckpointIO",
    "keep_interrupts",
    "pl",
    "quiet_lightning",
]
