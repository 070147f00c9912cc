"""A process that cannot import torch loads bundles, forecasts as PyTorch does, and says in one line what it cannot do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.torch_free import program
from tests.torch_free.bundles import write_bundles

pytestmark = pytest.mark.integration

Result = dict[str, Any]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundles that FORECASTER_TORCH_FREE_BUNDLES names, for an environment that cannot write them; else new ones."""
    written = os.environ.get("FORECASTER_TORCH_FREE_BUNDLES")
    if written is not None:
        return Path(written)
    folder = tmp_path_factory.mktemp("bundles")
    write_bundles(folder)
    return folder


def run_program(bundles: Path, *arguments: str) -> Result:
    command = [sys.executable, program.__file__, str(bundles), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    result: Result = json.loads(process.stdout)
    return result


@pytest.fixture(scope="module")
def with_kernel(bundles: Path) -> Result:
    return run_program(bundles)


@pytest.fixture(scope="module")
def without_kernel(bundles: Path) -> Result:
    return run_program(bundles, "no-kernel")


def test_no_module_of_torch_is_imported(with_kernel: Result, without_kernel: Result) -> None:
    assert not with_kernel["torch"]
    assert not without_kernel["torch"]


@pytest.mark.parametrize("fixture", ["with_kernel", "without_kernel"])
def test_forecasts_and_samples_are_those_of_pytorch(
    fixture: str, bundles: Path, request: pytest.FixtureRequest
) -> None:
    models = request.getfixturevalue(fixture)["models"]
    expected = json.loads((bundles / "expected.json").read_text())["models"]
    assert models.keys() == expected.keys()
    for name, result in expected.items():
        np.testing.assert_allclose(models[name]["mean"], result["mean"], rtol=1e-4, err_msg=name)
    for name in ("gaussian", "running"):
        np.testing.assert_allclose(models[name]["samples"], expected[name]["samples"], rtol=1e-4, err_msg=name)


def test_the_pretrained_network_forecasts_as_in_pytorch(
    with_kernel: Result, without_kernel: Result, bundles: Path
) -> None:
    expected = json.loads((bundles / "expected.json").read_text())["pretrained"]
    for result in (with_kernel, without_kernel):
        np.testing.assert_allclose(result["pretrained"], expected, rtol=1e-5)


def test_without_the_kernel_onnxruntime_forecasts_after_one_warning(without_kernel: Result) -> None:
    engines = {name: model["engine"] for name, model in without_kernel["models"].items()}
    assert engines.pop("running") == "RunningEngine"
    assert set(engines.values()) == {"OnnxEngine"}
    [warning] = without_kernel["warnings"]
    assert "kernel is not installed" in warning


def test_samples_that_only_pytorch_draws_name_the_extra_in_one_line(with_kernel: Result) -> None:
    code, message = with_kernel["models"]["neg_binomial"]["samples_error"]
    assert code == "missing_package"
    assert "pip install 'recurrent-forecaster[train]'" in message
    assert "\n" not in message


def test_a_network_that_reads_whole_histories_keeps_them_whole(with_kernel: Result, bundles: Path) -> None:
    steps = len(json.loads((bundles / "expected.json").read_text())["y"])
    assert with_kernel["models"]["whole_history"]["kept_steps"] == steps


def test_importing_the_package_takes_less_than_a_tenth_of_a_second(with_kernel: Result, without_kernel: Result) -> None:
    assert min(with_kernel["import_s"], without_kernel["import_s"]) < 0.1
