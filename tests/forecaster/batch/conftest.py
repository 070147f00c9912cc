"""A bundle of an untrained network, and data sets of many short series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forecaster.batch.job import BatchJob
from forecaster.batch.manifest import BatchModel
from forecaster.bundle import artifact
from tests.factories import make_fitted_model, make_spec

STEPS = 24


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    artifact.save_bundle(make_fitted_model(make_spec()), folder, card="# small")
    return folder


@pytest.fixture
def job(small_bundle: Path, tmp_path: Path) -> BatchJob:
    digest = artifact.compute_bundle_digest(small_bundle)
    return BatchJob(
        bundle=small_bundle,
        model=BatchModel(name="small", version="small/1", digest=digest),
        source=str(tmp_path / "input"),
        output=str(tmp_path / "output"),
        as_of="2026-01-31",
        horizon=5,
        shard_rows=4 * STEPS,
    )


def make_rows(num_series: int, *, steps: int = STEPS, first: int = 0) -> pa.Table:
    """Returns hourly series `s000`, `s001` and so on, sorted by id and timestamp."""
    rng = np.random.default_rng(first)
    hours = np.datetime64("2026-01-01", "us") + np.arange(steps) * np.timedelta64(1, "h")
    ids = [f"s{number:03d}" for number in range(first, first + num_series)]
    return pa.table(
        {
            "unique_id": np.repeat(ids, steps),
            "ds": np.tile(hours, num_series),
            "y": 10 + rng.normal(size=num_series * steps).cumsum(),
        }
    )


def shuffle_rows(table: pa.Table, *, seed: int = 0) -> pa.Table:
    return table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))


def write_files(folder: Path, tables: dict[str, pa.Table], *, row_group_size: int = 2 * STEPS) -> Path:
    """Writes each table as a Parquet file of a folder, by its relative name."""
    for name, table in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / name, row_group_size=row_group_size)
    return folder


def read_digests(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of every Parquet file below a folder, by its relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}
