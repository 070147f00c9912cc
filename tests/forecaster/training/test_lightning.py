"""The import of Lightning without unused packages is not noticed by other code of the process."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from forecaster.training import lightning


def load_lazily(tmp_path: Path, code: str) -> lightning._LazyModule:
    (tmp_path / "lazy.py").write_text(code)
    module = lightning._LazyModule("lazy")
    module.__spec__ = importlib.util.spec_from_file_location("lazy", tmp_path / "lazy.py")
    return module


def call_in_thread(function: Callable[[], object]) -> object:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(10)
    return results[0]


def test_a_lazy_module_runs_once_and_other_threads_wait_for_its_end(tmp_path: Path) -> None:
    module = load_lazily(tmp_path, "import time\nfirst = []\ntime.sleep(0.05)\n__all__ = ['first']\nlast = 1\n")
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append((module.last, id(module.first)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [(1, id(module.first))] * 4
    assert module.__all__ == ["first"], "names of Python's own kind are found too"
    assert not hasattr(module, "__path__")
    with pytest.raises(AttributeError, match="module 'lazy' has no attribute 'missing'"):
        _ = module.missing


def test_a_lazy_module_lists_its_names_and_runs_again_after_a_failure(tmp_path: Path) -> None:
    module = load_lazily(tmp_path, "raise ImportError('a part is missing')\n")
    for _ in range(2):
        with pytest.raises(ImportError, match="a part is missing"):
            _ = module.name
    (tmp_path / "lazy.py").write_text("name = 1  # now complete\n")
    assert "name" in dir(module)
    assert module.name == 1


def test_the_placeholder_of_the_compiler_is_seen_by_the_importing_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = types.ModuleType(lightning._COMPILER)
    compiler.reset = object()  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, lightning._COMPILER, raising=False)

    def import_compiler(name: str) -> types.ModuleType:
        return sys.modules.setdefault(name, compiler)

    monkeypatch.setattr(importlib, "import_module", import_compiler)
    with lightning._without_compiler():
        placeholder = sys.modules[lightning._COMPILER]
        assert placeholder.OptimizedModule is lightning._OptimizedModule
        with pytest.raises(AttributeError, match="placeholder"):
            _ = placeholder.reset
        assert call_in_thread(lambda: placeholder.reset) is compiler.reset  # type: ignore[attr-defined]
        assert sys.modules[lightning._COMPILER] is compiler, "the thread's import is not undone"
    assert sys.modules[lightning._COMPILER] is compiler
    assert placeholder.reset is compiler.reset  # type: ignore[attr-defined]
    del sys.modules[lightning._COMPILER]
    with pytest.raises(KeyboardInterrupt), lightning._without_compiler():
        raise KeyboardInterrupt
    assert lightning._COMPILER not in sys.modules


def test_a_function_is_excluded_from_compilation_once_the_compiler_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    excluded: list[object] = []

    def disable(function: Callable[..., int], recursive: bool = True, *, reason: str | None = None) -> object:
        excluded.append((recursive, reason))
        return lambda value: -function(value)

    monkeypatch.delitem(sys.modules, lightning._COMPILER, raising=False)
    function = lightning._disable_when_imported(abs, False, reason="any")
    assert (function(-2), function.__name__, excluded) == (2, "abs", [])
    compiler = types.ModuleType(lightning._COMPILER)
    compiler.__dict__.update(disable=disable, OptimizedModule=dict)
    monkeypatch.setitem(sys.modules, lightning._COMPILER, compiler)
    assert (function(-2), function(-3), excluded) == (-2, -3, [(False, "any")])
    assert isinstance({}, lightning._OptimizedModule)
    assert not isinstance([], lightning._OptimizedModule)
    with pytest.raises(TypeError):
        lightning._disable_when_imported(None)  # type: ignore[arg-type]


_PROGRAM = """
import sys, threading, torch
seen = {}
def use_the_compiler():
    while type(sys.modules.get("torch._dynamo")).__name__ != "_CompilerPlaceholder":
        if "forecaster.training.module" in sys.modules:
            return
    import torch._dynamo
    import torch._dynamo.config
    seen["compiler"] = torch._dynamo.reset
thread = threading.Thread(target=use_the_compiler)
thread.start()
from forecaster.training.lightning import pl
import forecaster.training.module
thread.join()
assert "scipy" not in sys.modules and "matplotlib" not in sys.modules
from pytorch_lightning.utilities.compile import OptimizedModule, from_compiled
network = torch.nn.Linear(1, 1)
compiled = torch.compile(network, backend="eager")
assert isinstance(compiled, OptimizedModule) and not isinstance(network, OptimizedModule)
assert sys.modules["torch._dynamo"].reset is torch._dynamo.reset
assert seen.get("compiler", torch._dynamo.reset) is torch._dynamo.reset
import torchmetrics
from torchmetrics import *
assert Accuracy is torchmetrics.classification.Accuracy and torchmetrics.functional.accuracy
assert issubclass(MeanMetric, pl.core.module.Metric)
metrics = MetricCollection([MeanMetric()])
metrics.update(torch.ones(2))
try:
    metrics.plot(ax="axes", together=True)
except ValueError as error:
    assert "matplotlib axis" in str(error)
else:
    raise AssertionError("axes of a wrong type are accepted")
"""


@pytest.mark.integration
def test_a_program_uses_compiler_and_metrics_after_the_import_and_in_a_thread_during_it() -> None:
    process = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
