"""Computes one shard: rows to forecasts and rejects, written as Parquet files whose bytes depend on the manifest only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from forecaster.batch.covariates import CovariateSources, ShardCovariates, read_covariates
from forecaster.batch.forecasts import BatchResult, forecast_table
from forecaster.batch.history_scales import compute_history_scales
from forecaster.batch.manifest import BatchManifest, BatchModel, ShardRecord, write_shard_record
from forecaster.batch.shuffle import Shuffle, read_bucket
from forecaster.batch.source import Source
from forecaster.batch.stores import Store, StoredFile
from forecaster.bundle import artifact
from forecaster.bundle.pretrained.base import BASE_FOLDER, specialize_base
from forecaster.data.calendar import default_horizon
from forecaster.errors import FrequencyUnknown
from forecaster.frequency.timestamps import normalize_frequency
from forecaster.prediction.predictor import Predictor
from forecaster.shapes import Int
from forecaster.storage.failpoints import fail_point

MAX_CHUNK_ROWS = 500_000  # of histories or forecasts that are in memory as series at a time
MAX_REPAIRS = 20  # messages that a record keeps
STAGES = ("read", "forecast", "write")
STEP_COLUMN, SCALE_COLUMN = "step", "scale"
AS_OF_COLUMN, VERSION_COLUMN, DIGEST_COLUMN = "as_of", "model_version", "model_digest"


class ShardInputs(NamedTuple):
    """What every shard of a batch is computed from.

    Attributes:
        bundle: The folder of the model.
        manifest: The batch.
        source: The input.
        covariates: The data sets of the covariates and the static features.
        shuffle, future_shuffle: Where the rows of buckets are, of the input and of the future; None without a shuffle.
        output: The output folder, a path or URL.
    """

    bundle: Path
    manifest: BatchManifest
    source: Source
    covariates: CovariateSources
    shuffle: Shuffle | None
    future_shuffle: Shuffle | None
    output: str

    @property
    def shuffles(self) -> list[Shuffle]:
        """The shuffles that there are."""
        return [shuffle for shuffle in (self.shuffle, self.future_shuffle) if shuffle is not None]


@dataclass
class _Tables:
    """The results of the chunks of a shard, and the seconds of each stage."""

    forecasts: list[pa.Table] = field(default_factory=list)
    rejects: list[pa.Table] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    cpu_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    series: int = 0
    warnings: int = 0
    repairs: list[str] = field(default_factory=list)

    @contextmanager
    def time_stage(self, stage: str) -> Iterator[None]:
        """Adds the seconds of a block to a stage."""
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        self.seconds[stage] += time.perf_counter() - start
        self.cpu_seconds[stage] += time.process_time() - cpu_start


@lru_cache(maxsize=1)
def load_model(bundle: Path, model: BatchModel, *, horizon: int) -> Predictor:
    """Loads the model of a batch on its fastest engine, once per process; raises BundleError if it is another one."""
    artifact.require_digest(bundle, model.digest)
    if bundle == BASE_FOLDER:
        assert model.freq is not None
        return Predictor(specialize_base(model.freq, horizon=horizon, season=model.season))
    return artifact.load_predictor(bundle)


class IdentifiedModel(NamedTuple):
    """What identifies a model, and its horizon."""

    model: BatchModel
    horizon: int


def identify_model(bundle: Path, *, version: str | None, freq: str | None, season: int | None) -> IdentifiedModel:
    """Returns what identifies the model of a bundle.

    Args:
        bundle: Its folder.
        version: Its version in a registry; None names it by the start of its digest.
        freq, season: For the pretrained network: the frequency of the data, and the season if it is not the usual one.
    Raises:
        BundleError: There is no bundle in the folder.
        FrequencyUnknown: The pretrained network has no frequency.
    """
    digest, manifest = artifact.compute_bundle_digest(bundle), artifact.read_manifest(bundle)
    version = version or f"{manifest.name}@{digest[:12]}"
    if bundle != BASE_FOLDER:
        return IdentifiedModel(BatchModel(name=manifest.name, version=version, digest=digest), manifest.horizon)
    if freq is None:
        raise FrequencyUnknown(
            "Expected the frequency of the data for the pretrained network; found none. Declare it (`freq`='D'), in "
            "Python as Forecaster.pretrained('D').",
            where="freq",
        )
    freq = str(normalize_frequency(freq, where="freq"))
    model = BatchModel(name=manifest.name, version=version, digest=digest, freq=freq, season=season)
    return IdentifiedModel(model, default_horizon(freq))


def compute_shard(predictor: Predictor, inputs: ShardInputs, shard: int) -> ShardRecord:
    """Forecasts the series of a shard and writes its files, then its record, which it returns."""
    store, manifest = Store(inputs.output), inputs.manifest
    tables = _Tables()
    with tables.time_stage("read"):
        rows = _read_rows(inputs, shard)
        covariates = _read_covariates(inputs, shard, rows)
    for chunk in [] if rows is None else _iter_chunks(rows, inputs):
        with tables.time_stage("forecast"):
            _forecast_chunk(predictor, chunk, covariates, manifest, tables)
    with tables.time_stage("write"):
        rejects = _write_tables(store, manifest.rejects_name(shard), tables.rejects)
        fail_point("batch.rejected")
        forecasts = _write_tables(store, manifest.forecast_name(shard), tables.forecasts)
        fail_point("batch.written")
    record = ShardRecord(
        shard=shard,
        series=tables.series,
        rejected=sum(table.num_rows for table in tables.rejects),
        rows=sum(table.num_rows for table in tables.forecasts),
        warnings=tables.warnings,
        repairs=tuple(tables.repairs[:MAX_REPAIRS]),
        forecasts=forecasts,
        rejects=rejects,
        seconds={stage: round(seconds, 4) for stage, seconds in tables.seconds.items()},
        cpu_seconds={stage: round(seconds, 4) for stage, seconds in tables.cpu_seconds.items()},
        peak_mib=measure_peak_mib(),
    )
    write_shard_record(store, manifest, record)
    fail_point("batch.recorded")
    return record


def measure_peak_mib() -> float:
    """Returns the peak memory of this process in MiB; 0 on a system that does not report it."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def _read_rows(inputs: ShardInputs, shard: int) -> pa.Table | None:
    """Returns the rows of a shard; None if there are none."""
    plan, manifest = inputs.manifest.shards[shard], inputs.manifest
    if plan.bucket is not None:
        assert inputs.shuffle is not None
        return read_bucket(inputs.shuffle, plan.bucket)
    table = inputs.source.read(plan.pieces, plan.ids)
    if manifest.ids is not None:
        kept = pa.array(manifest.ids, type=pa.string())
        table = table.filter(pc.is_in(table.column(manifest.reading.id_column), kept))
    return table if table.num_rows else None


def _read_covariates(inputs: ShardInputs, shard: int, rows: pa.Table | None) -> ShardCovariates:
    """Returns the covariates and static features of the series of a shard, from data sets of their own."""
    if rows is None or not inputs.covariates.opened:
        return ShardCovariates(None, None)
    manifest = inputs.manifest
    return read_covariates(
        inputs.covariates,
        manifest,
        inputs.future_shuffle,
        manifest.shards[shard],
        bucket=shard,
        ids=rows.column(manifest.reading.id_column).unique().drop_null(),
    )


def _iter_chunks(rows: pa.Table, inputs: ShardInputs) -> Iterator[pa.Table]:
    """Yields whole series, as many as need a bounded memory; the rows of a series keep their order."""
    encoded = rows.column(inputs.manifest.reading.id_column).combine_chunks().dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy()
    if (np.diff(codes) < 0).any():  # ids are numbered by their first row
        order = np.argsort(codes, kind="stable")
        rows, codes = rows.take(pa.array(order)), codes[order]
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(codes)) + 1, [len(codes)]])
    start = 0
    for stop in _plan_chunks(np.diff(bounds), horizon=inputs.manifest.horizon):
        yield rows.slice(bounds[start], bounds[stop] - bounds[start])
        start = stop


def _plan_chunks(lengths: Int[np.ndarray, "series"], *, horizon: int) -> Iterator[int]:
    """Yields the end of each chunk, as the number of series before it."""
    max_series, first = max(1, MAX_CHUNK_ROWS // horizon), 0
    ends = np.cumsum(lengths)
    while first < len(lengths):
        before = int(ends[first - 1]) if first else 0
        stop = int(np.searchsorted(ends, before + MAX_CHUNK_ROWS, side="right"))
        first = min(max(stop, first + 1), first + max_series)
        yield first


def _forecast_chunk(
    predictor: Predictor, chunk: pa.Table, covariates: ShardCovariates, manifest: BatchManifest, tables: _Tables
) -> None:
    reading = manifest.reading
    result: BatchResult = forecast_table(
        predictor,
        chunk,
        horizon=manifest.horizon,
        level=manifest.level or None,
        quantiles=manifest.quantiles or None,
        future=covariates.future,
        static=covariates.static,
        columns=reading.names,
        freq=reading.freq,
        zone=reading.zone,
    )
    tables.series += result.rejects.num_rows + result.forecasts.num_rows // manifest.horizon
    tables.warnings += result.warnings.num_rows
    tables.repairs.extend(result.repairs)
    if result.forecasts.num_rows:
        ids = result.forecasts.column(reading.id_column)
        model = predictor.fitted_model
        scales = compute_history_scales(
            chunk,
            ids.take(pa.array(np.arange(0, len(ids), manifest.horizon))).combine_chunks(),
            reading,
            freq=model.freq,
            season=model.season,
        )
        tables.forecasts.append(_add_columns(result.forecasts, scales, manifest))
    if result.rejects.num_rows:
        tables.rejects.append(_add_identity(result.rejects, manifest))


def _add_columns(forecasts: pa.Table, scales: np.ndarray, manifest: BatchManifest) -> pa.Table:
    """Appends the step ahead, the scale of MASE, and what identifies the batch and its model."""
    steps = np.tile(np.arange(1, manifest.horizon + 1, dtype=np.int32), len(scales))
    index = forecasts.schema.get_field_index(manifest.reading.ds_column)
    ds = forecasts.column(index)
    if pa.types.is_timestamp(ds.type) and ds.type.unit != "us":  # files of one data set have one type
        forecasts = forecasts.set_column(index, manifest.reading.ds_column, ds.cast(pa.timestamp("us", tz=ds.type.tz)))
    forecasts = forecasts.add_column(index + 1, STEP_COLUMN, pa.array(steps))
    scale_column = pa.array(np.repeat(scales, manifest.horizon), from_pandas=True)
    return _add_identity(forecasts.append_column(SCALE_COLUMN, scale_column), manifest)


def _add_identity(table: pa.Table, manifest: BatchManifest) -> pa.Table:
    values = {
        AS_OF_COLUMN: manifest.as_of,
        VERSION_COLUMN: manifest.model.version,
        DIGEST_COLUMN: manifest.model.digest,
    }
    for name, value in values.items():
        indices = pa.array(np.zeros(table.num_rows, dtype=np.int32))
        table = table.append_column(name, pa.DictionaryArray.from_arrays(indices, pa.array([value])))
    return table.replace_schema_metadata(None)


def _write_tables(store: Store, name: str, tables: Sequence[pa.Table]) -> StoredFile | None:
    """Writes tables as the row groups of one file; None without tables."""
    if not tables:
        return None
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(tables[0].schema))
    return store.write_bytes(name, sink.getvalue())
