"""Fixtures: a fresh root for each test, a specification that trains in a second, and data whose best forecast is the mean."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.registry.registry import create_client
from forecaster.spec import NetworkSpec, Spec, TrainingSpec
from pipelines.promotion.policy import Policy
from pipelines.settings import Root, resolve_tracking_uri
from pipelines.sources import DataSource

GOOD_LEARNING_RATE = 1e-3  # keeps the small network near its initial forecast, the mean of the history
BAD_LEARNING_RATE = 10.0  # makes the training diverge

# With a window of twenty series the gate finds no significant difference; here a better score is enough. The small network,
# which is hardly trained, need not be as good as the pretrained one.
LENIENT_POLICY = Policy(margin=0.0, confidence=0.51, zero_shot=False, group_room=10.0)


def make_noise_frame(series: int = 20, steps: int = 60) -> pd.DataFrame:
    """Hourly white noise around ten: no forecast is better than the mean, and the error of seasonal naive is 1.4 times larger."""
    rng = np.random.default_rng(0)
    return pd.concat(
        pd.DataFrame(
            {
                "unique_id": f"meter_{number}",
                "ds": pd.date_range("2026-01-01", periods=steps, freq="h"),
                "y": 10 + rng.normal(size=steps),
            }
        )
        for number in range(series)
    )


def make_small_spec(
    *, learning_rate: float = GOOD_LEARNING_RATE, seed: int = 0, name: str = "small", **training: Any
) -> Spec:
    """Makes a specification that trains in a second."""
    fields = {"steps": 4, "epoch_steps": 2, "batch": 8, "learning_rate": learning_rate, "seed": seed} | training
    return Spec(
        name=name, context=8, horizon=4, season=4, network=NetworkSpec(hidden=4), training=TrainingSpec(**fields)
    )


@pytest.fixture(scope="session")
def migrated_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose database is migrated once; tests copy the file, because a migration is slow."""
    root = tmp_path_factory.mktemp("migrated")
    create_client(resolve_tracking_uri(root))
    return root


def copy_root(source: Root, target: Path) -> Root:
    """Copies a root with its store, in which the artifacts have absolute paths; a copy is faster than another training."""
    shutil.copytree(source.path, target)
    old, new = str(source.path), str(target)
    with closing(sqlite3.connect(target / "mlflow.db")) as connection, connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for [table] in tables:
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
                if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                    connection.execute(
                        f'UPDATE {table} SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                        (old, new, old),
                    )
    return Root(target)


@pytest.fixture
def fresh_root(migrated_root: Path, tmp_path: Path) -> Root:
    folder = tmp_path / "root"
    folder.mkdir()
    shutil.copy(migrated_root / "mlflow.db", folder)
    return Root(folder)


@pytest.fixture
def noise_data(tmp_path: Path) -> DataSource:
    path = tmp_path / "meters.csv"
    make_noise_frame().to_csv(path, index=False)
    return DataSource(str(path))


@pytest.fixture(scope="module")
def six_meters(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    """Six series, for a search that takes seconds."""
    path = tmp_path_factory.mktemp("data") / "meters.csv"
    make_noise_frame(series=6).to_csv(path, index=False)
    return DataSource(str(path))
