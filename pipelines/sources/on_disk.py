"""Reads the Parquet files of a data source into a panel on disk."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from forecaster.data.on_disk.parquet import ParquetSource, count_rows, read_parquet_panel
from forecaster.data.summary import describe_size
from forecaster.errors import InputError
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Panel
from pipelines.sources.data import DataSource
from pipelines.sources.panels import read_panel


def read_panel_on_disk(data: DataSource, *, folder: Path, progress: Progress = NO_PROGRESS) -> Panel:
    """Reads the panel of a source of Parquet files, as the phase "reading"; its values stay in the folder.

    Raises InputError, or a subclass, for sources and options that need a panel in memory, and as `read_parquet_panel`.
    """
    _validate_source(data)
    source = ParquetSource(
        Path(data.source), data.freq, data.columns, data.zone, static=data.static, channels=data.channels
    )
    num_rows = count_rows(source)
    folder.mkdir(parents=True, exist_ok=True)
    with progress.phase("reading", num_rows):
        panel = read_parquet_panel(source, folder=folder, progress=progress)
        progress.update(num_rows, f"{describe_size(panel)}, on disk")
    return panel


def read_training_panel(
    data: DataSource, *, folder: Path | None, now: datetime, progress: Progress = NO_PROGRESS
) -> Panel:
    """Reads the panel of a training: on disk if a folder for its values is given, else into memory (`read_panel`)."""
    if folder is None:
        return read_panel(data, now=now, progress=progress)
    return read_panel_on_disk(data, folder=folder, progress=progress)


def _validate_source(data: DataSource) -> None:
    unsupported = {
        "a query": data.is_query,
        "a URL": "://" in data.source,
        "--cutoff": data.cutoff is not None,
        "--drop-partial": data.drop_partial,
        f"the covariates {', '.join(data.covariates)}": bool(data.covariates),
    }
    given = [name for name, is_given in unsupported.items() if is_given]
    if given:
        raise InputError(
            f"Expected Parquet files on this machine for --on-disk, without cutoff, covariates and dropped periods; found "
            f"{', '.join(given)}. Prepare the files accordingly, or train in memory without --on-disk.",
            where="on_disk",
        )
