"""Forecasts of data sets that do not fit into memory: the batch of a `Forecaster`."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from forecaster.api.fitting import ModelOptions
from forecaster.api.messages import validate_counts
from forecaster.api.storage import open_bundle
from forecaster.bundle.pretrained.base import BASE_FOLDER
from forecaster.installation import require_package
from forecaster.progress import Progress

if TYPE_CHECKING:
    from forecaster.batch.job import BatchReport


class BundleAddress(NamedTuple):
    """Where a model was loaded from: a folder or the address of a registered model, and the registry."""

    path: str
    tracking_uri: str | None


@dataclass(frozen=True)
class DatasetRequest:
    """The arguments of `Forecaster.predict_dataset`."""

    source: str
    future: Any
    static: Any
    out: str
    horizon: int | None
    level: tuple[float, ...]
    quantiles: tuple[float, ...]
    as_of: str | None
    workers: int
    scratch: str | None
    limit: int | None
    layout: Literal["auto", "files", "shuffle"]


def predict_dataset(
    request: DatasetRequest, bundle: Path, options: ModelOptions, *, season: int | None, progress: Progress
) -> BatchReport:
    """Runs the batch of a bundle; `options` say how the data are read, `season` is that of the pretrained network."""
    require_package("pyarrow", purpose="forecasts of data sets")
    from forecaster.batch.job import BatchJob, run_batch
    from forecaster.batch.manifest import ReadingOptions
    from forecaster.batch.shard import identify_model

    validate_counts(horizon=request.horizon, workers=request.workers, limit=request.limit)
    freq = None if options.freq is None else str(options.freq)
    identity = identify_model(bundle, version=None, freq=freq, season=season)
    names = options.columns
    reading = ReadingOptions(
        id_column=names.unique_id, ds_column=names.ds, y_column=names.y, freq=freq, zone=options.zone
    )
    with tempfile.TemporaryDirectory() as folder:
        future, static = (
            _locate(table, name, Path(folder), id_column=names.unique_id)
            for name, table in (("future", request.future), ("static", request.static))
        )
        job = BatchJob(
            bundle=bundle,
            model=identity.model,
            source=request.source,
            output=request.out,
            as_of=request.as_of or datetime.now(UTC).date().isoformat(),
            horizon=request.horizon or identity.horizon,
            level=request.level,
            quantiles=request.quantiles,
            reading=reading,
            future=future,
            static=static,
            workers=request.workers,
            scratch=request.scratch,
            limit=request.limit,
            layout=request.layout,
        )
        return run_batch(job, progress=progress)


def _locate(table: Any, name: str, folder: Path, *, id_column: str) -> str | None:
    """Returns where a data set is: its path or URL, or that of the file to which a table is written.

    The name of the file has the digest of the table, so that a batch is not continued with another one.
    """
    if table is None or isinstance(table, str | os.PathLike):
        return None if table is None else os.fspath(table)
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    from forecaster.batch.tables import to_table

    sink = pa.BufferOutputStream()
    pq.write_table(to_table(table, argument=name, id_column=id_column).replace_schema_metadata(None), sink)
    content = memoryview(sink.getvalue())
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()}.parquet"
    path.write_bytes(content)
    return str(path)


@contextmanager
def open_model_bundle(
    address: BundleAddress | None, *, is_pretrained: bool, save: Callable[[Path], object]
) -> Iterator[Path]:
    """Yields the bundle of a model: the shipped one, the one that it was loaded from, or else a temporary one."""
    if is_pretrained:
        yield BASE_FOLDER
    elif address is not None:
        with open_bundle(address.path, tracking_uri=address.tracking_uri) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            save(bundle)
            yield bundle
