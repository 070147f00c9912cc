"""The absolute paths of files in the MLflow database of a root, which are wrong after the root was copied or moved.

This module uses SQLite without MLflow, whose import takes seconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from forecaster.errors import RegistryError
from forecaster.registry.lock import lock_database

ARTIFACT_FOLDER = "mlruns"
_MODEL_COLUMNS = (("model_versions", "source"), ("model_versions", "storage_location"))
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    *_MODEL_COLUMNS,
)


class ArtifactPaths(NamedTuple):
    """The locations of files in a database that do not fit its root.

    Attributes:
        outside: URIs of folders outside the root.
        missing: URIs of model versions in the root whose folder does not exist.
    """

    outside: list[str]
    missing: list[str]


def artifact_location(root: Path) -> str:
    """Returns the URI of the folder in which the runs and models of a root store their files."""
    return (root.absolute() / ARTIFACT_FOLDER).as_uri()


def find_wrong_paths(database: sqlite3.Connection, root: Path) -> ArtifactPaths:
    """Finds the locations of runs and models that lie outside the root or do not exist."""
    locations = {uri for table, column in _COLUMNS for uri in _read_locations(database, table, column)}
    models = {uri for table, column in _MODEL_COLUMNS for uri in _read_locations(database, table, column)}
    outside = {uri for uri in locations if not _is_inside(uri, root)}
    missing = {uri for uri in models - outside if not _to_path(uri).is_dir()}
    return ArtifactPaths(sorted(outside), sorted(missing))


def move_paths(database_path: Path, root: Path) -> int:
    """Rewrites the locations outside a root to the same folders in it; returns how many there were.

    All are rewritten in one transaction or none. Raises RegistryError if a model version has no files in the root, because the
    files were not copied with the database.
    """
    with lock_database(f"sqlite:///{database_path}"), closing(sqlite3.connect(database_path, timeout=20.0)) as database:
        database.isolation_level = None  # transactions begin explicitly
        database.execute("BEGIN IMMEDIATE")
        outside = find_wrong_paths(database, root).outside
        for uri in outside:
            for table, column in _COLUMNS:
                database.execute(
                    f"UPDATE {table} SET {column} = ? WHERE {column} = ?",  # noqa: S608  # names of this module
                    (_move(uri, root), uri),
                )
        missing = find_wrong_paths(database, root).missing
        if missing:
            database.execute("ROLLBACK")
            raise RegistryError(
                f"Expected the files of every model version in {root / ARTIFACT_FOLDER}; found none at {_to_path(missing[0])}. "
                f"Copy the folder {ARTIFACT_FOLDER} of the old root first.",
                where=str(root),
            )
        database.execute("COMMIT")
    return len(outside)


def _read_locations(database: sqlite3.Connection, table: str, column: str) -> Iterator[str]:
    """Yields the URIs of local files that this project wrote; MLflow's own default experiment has another form."""
    rows = database.execute(f"SELECT DISTINCT {column} FROM {table}")  # noqa: S608  # names of this module
    return (uri for (uri,) in rows if uri and uri.startswith("file:///") and f"/{ARTIFACT_FOLDER}" in uri)


def _is_inside(uri: str, root: Path) -> bool:
    return _to_path(uri).is_relative_to(root.absolute() / ARTIFACT_FOLDER)


def _move(uri: str, root: Path) -> str:
    _, _, rest = uri.rpartition(f"/{ARTIFACT_FOLDER}")
    return artifact_location(root) + rest


def _to_path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
