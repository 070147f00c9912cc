"""What holds for every test: one thread, checked shapes, marks, and the limits of a unit test.

Every test has exactly one of three marks. `integration` and `nightly` are set where a test needs a process, MLflow or
seconds; a test without either of them is a `unit` test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import pytest

# A thread of MLflow's telemetry, which its import starts, imports parts of MLflow while the test does.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from tests import without_packages

if without_packages.is_torch_installed():
    import torch

    from tests import shape_checks

    shape_checks.install_shape_checks()
    torch.set_num_threads(1)  # small networks are slower on several threads, and tests run in parallel

FILE_MARK = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.(?:integration|nightly)\b", re.MULTILINE)


def pytest_configure(config: pytest.Config) -> None:
    # Lightning 2.6 calls torch 2.13 in a deprecated way.
    config.addinivalue_line("filterwarnings", "ignore:.*isinstance.treespec, LeafSpec:FutureWarning")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None]:
    """In an environment without some extras, as `make try-wheels` creates, test files that import their packages are skipped."""
    with without_packages.skip_modules_that_need_them():
        yield


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A run of the unit tests alone does not import files that contain none."""
    if config.option.markexpr != "unit" or not collection_path.name.startswith("test_"):
        return None
    return True if FILE_MARK.search(collection_path.read_text()) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("nightly"):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "integration"]
        elif not item.get_closest_marker("integration"):
            item.add_marker(pytest.mark.unit)


@pytest.fixture(autouse=True)
def unit_limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A unit test starts no process and imports no MLflow."""
    if not request.node.get_closest_marker("unit"):
        yield
        return

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("A unit test starts no process. Mark the test `integration`.")

    for owner, name in ((subprocess, "Popen"), (os, "fork"), (BaseProcess, "start")):
        monkeypatch.setattr(owner, name, refuse)
    imported_before = "mlflow" in sys.modules
    yield
    assert imported_before or "mlflow" not in sys.modules, "A unit test imports no MLflow. Mark the test `integration`."
