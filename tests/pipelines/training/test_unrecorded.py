"""A training where MLflow is not installed: it writes its bundle, and records no run."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.errors import MissingPackage
from pipelines.commands import train as commands
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import TrainOptions, train
from tests.pipelines.conftest import make_small_spec

pytestmark = pytest.mark.unit
_find_spec = importlib.util.find_spec


def hide_mlflow(monkeypatch: pytest.MonkeyPatch, *hidden: str) -> None:
    def find_spec(name: str) -> ModuleSpec | None:
        return None if name in hidden else _find_spec(name)

    monkeypatch.setattr(commands, "find_spec", find_spec)


def test_a_training_without_a_run_writes_its_bundle(tmp_path: Path) -> None:
    days = pd.date_range("2026-01-01", periods=60, freq="h")
    pd.DataFrame({"unique_id": "a", "ds": days, "y": np.sin(np.arange(60.0))}).to_csv(tmp_path / "data.csv")
    root = Root(tmp_path / "root")
    result = train(DataSource(str(tmp_path / "data.csv")), make_small_spec(), root, TrainOptions(record=False))
    assert result.run_id is None
    assert result.bundle.parent == root.bundles
    assert (
        "run_id" not in artifact.load_bundle(result.bundle).facts
    )  # `register` records a run of its own for the bundle
    assert not (root.path / "mlflow.db").exists()
    assert [path for path in root.checkpoints.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("hidden", ["mlflow", "alembic"])
def test_without_mlflow_nothing_is_recorded(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_mlflow(monkeypatch, hidden)
    assert not commands.can_record(Root(Path("root")))


def test_a_tracking_server_needs_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root(Path("root"), tracking_uri="https://mlflow.example")
    hide_mlflow(monkeypatch, "alembic")
    assert commands.can_record(root)
    hide_mlflow(monkeypatch, "mlflow")
    with pytest.raises(MissingPackage, match=r"'mlflow' for the tracking server.*recurrent-forecaster\[track\]"):
        commands.can_record(root)


def test_a_retraining_without_mlflow_fails_before_it_reads_data(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_mlflow(monkeypatch, "mlflow")
    with pytest.raises(MissingPackage, match=r"recurrent-forecaster\[track\]"):
        commands.retrain("none.csv", spec_options=commands.SpecOptions(horizon=2))
