"""The Python API beside the command line and the registry, and what an import costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from forecaster import Forecaster
from forecaster.errors import NoSuchModel
from forecaster.registry.registry import CHAMPION, Registry
from pipelines.cli import main
from pipelines.promotion.promote import register_bundle
from pipelines.settings import Root
from tests.forecaster.api.conftest import make_fields

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:On the test windows:forecaster.api.ForecastWarning"),
]


def run_command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*map(str, arguments)])
    assert not raised.value.code


def test_the_command_line_and_the_class_give_the_same_forecasts_and_read_each_others_bundles(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data, config, table = tmp_path / "sales.csv", tmp_path / "tiny.yaml", tmp_path / "forecast.csv"
    frame.to_csv(data, index=False)
    config.write_text(yaml.safe_dump(make_fields()))
    root = Root(tmp_path / "root")
    run_command("train", data, "--config", config, "--seed", 7, "--root", root.path)
    (bundle,) = root.bundles.iterdir()
    levels = ("--levels", 0.1, "--levels", 0.9)
    run_command("forecast", bundle, data, *levels, "--out", table, "--root", root.path)
    by_command = pd.read_csv(table)
    forecaster = Forecaster(spec=make_fields(), seed=7).fit(frame, progress=False)
    saved = forecaster.save(tmp_path / "saved")
    for by_class in (forecaster.predict(level=80), Forecaster.load(bundle).predict(frame, level=80)):
        np.testing.assert_allclose(by_class["forecaster"], by_command["mean"], rtol=1e-6)
        np.testing.assert_allclose(by_class["forecaster-lo-80"], by_command["0.1"], rtol=1e-5)
    run_command("forecast", saved, data, *levels, "--out", table, "--root", root.path)
    pd.testing.assert_frame_equal(pd.read_csv(table), by_command)
    assert {"mase", "mae"} <= set(Forecaster.load(bundle).report.columns)

    registry = Registry(root.store_uri)
    version = register_bundle(saved, root)
    registry.set_alias(version, CHAMPION)
    monkeypatch.setenv("FORECASTER_ROOT", str(root.path))
    for address in ("models:/tiny@champion", "models:/tiny/1", "models:/tiny"):
        loaded = Forecaster.load(address)
        np.testing.assert_allclose(loaded.predict(frame)["forecaster"], by_command["mean"], rtol=1e-6)
    assert Forecaster.load("models:/tiny", tracking_uri=root.store_uri).spec == forecaster.spec
    with pytest.raises(NoSuchModel):
        Forecaster.load("models:/other@champion")


def test_the_import_is_cheap_and_predicting_needs_no_torch(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = Forecaster(spec=make_fields()).fit(frame, progress=False).save(tmp_path / "bundle", histories=True)
    program = f"""
import sys, time
started = time.perf_counter()
import forecaster
seconds = time.perf_counter() - started
assert not {{"numpy", "pandas", "torch"}} & set(sys.modules), "the package imports its parts on first use"
from forecaster import Forecaster
model = Forecaster.load({str(path)!r})
assert len(model.predict(level=80)) == 18
assert not {{"torch", "pytorch_lightning", "mlflow", "matplotlib"}} & set(sys.modules)
print(seconds)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.1
    assert result.stderr == ""
