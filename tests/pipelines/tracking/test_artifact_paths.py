"""The paths in the database of a root that was copied or moved."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from forecaster.errors import RegistryError
from pipelines.tracking.artifact_paths import artifact_location, find_wrong_paths, move_paths

MODEL = "models/m-1/artifacts"
TABLES = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


def make_root(folder: Path, named_root: Path) -> Path:
    """Writes a database with the paths of `named_root`, as MLflow does, and the files of one model; returns the database."""
    (folder / "mlruns" / MODEL).mkdir(parents=True)
    location = artifact_location(named_root)
    paths = {"experiments": location, "runs": f"{location}/run1/artifacts"}
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for table, columns in TABLES.items():
            database.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            row = [paths.get(table, f"{location}/{MODEL}")] * len(columns)
            database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", row)
        database.execute("INSERT INTO experiments VALUES ('./mlruns/0')")  # MLflow's own
    return folder / "mlflow.db"


def read_paths(database_path: Path) -> set[str]:
    with closing(sqlite3.connect(database_path)) as database:
        return {
            value for table in TABLES for row in database.execute(f"SELECT * FROM {table}") for value in row if value
        }


def test_a_root_with_its_own_paths_is_in_order(tmp_path: Path) -> None:
    database_path = make_root(tmp_path / "a root", tmp_path / "a root")
    before = read_paths(database_path)
    with closing(sqlite3.connect(database_path)) as database:
        assert find_wrong_paths(database, tmp_path / "a root") == ([], [])
    assert move_paths(database_path, tmp_path / "a root") == 0
    assert read_paths(database_path) == before


def test_the_paths_of_a_copied_root_are_found_and_moved(tmp_path: Path) -> None:
    root, old_root = tmp_path / "a root", tmp_path / "old mlruns" / "root"
    database_path = make_root(root, old_root)
    with closing(sqlite3.connect(database_path)) as database:
        outside, missing = find_wrong_paths(database, root)
    assert (len(outside), missing) == (3, [])
    assert all(uri.startswith(artifact_location(old_root)) for uri in outside)
    assert move_paths(database_path, root) == 3
    location = artifact_location(root)
    expected = {location, f"{location}/run1/artifacts", f"{location}/{MODEL}", "./mlruns/0"}
    assert read_paths(database_path) == expected


def test_nothing_is_moved_without_the_files(tmp_path: Path) -> None:
    database_path = make_root(tmp_path / "root", tmp_path / "old")
    (tmp_path / "root" / "mlruns" / MODEL).rmdir()
    before = read_paths(database_path)
    with pytest.raises(RegistryError, match="Copy the folder mlruns of the old root first"):
        move_paths(database_path, tmp_path / "root")
    assert read_paths(database_path) == before


def test_a_missing_folder_of_a_model_is_found(tmp_path: Path) -> None:
    database_path = make_root(tmp_path, tmp_path)
    (tmp_path / "mlruns" / MODEL).rmdir()
    with closing(sqlite3.connect(database_path)) as database:
        assert find_wrong_paths(database, tmp_path) == ([], [f"{artifact_location(tmp_path)}/{MODEL}"])
