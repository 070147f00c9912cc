"""The files that describe a batch in its output folder: the manifest, fixed at the first start, and the record of each shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from forecaster.batch.plan import Shard
from forecaster.batch.source import InputSummary, Piece
from forecaster.batch.stores import Store, StoredFile
from forecaster.data.frames.rows import ColumnNames
from forecaster.errors import InputError, ManifestMismatch

SCHEMA_VERSION = 1
FOLDER = "_forecaster"
CATALOGUE_FILE = f"{FOLDER}/catalogue.json"


class BatchRecord(BaseModel):
    """A record of a batch, stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_RecordT = TypeVar("_RecordT", bound=BatchRecord)


class BatchModel(BatchRecord):
    """The model of a batch.

    Attributes:
        name: The name in its specification.
        version: The name with the version of the registry (`hospital/3`) or, of a bundle, the start of the digest.
        digest: The digest of its bundle.
        freq, season: The frequency and the season for which the pretrained network is specialized; None for other models.
    """

    name: str
    version: str
    digest: str
    freq: str | None = None
    season: int | None = None


class ReadingOptions(BatchRecord):
    """How the input is read, as by `forecast_table`, and the other columns that the model reads."""

    id_column: str = "unique_id"
    ds_column: str = "ds"
    y_column: str = "y"
    freq: str | None = None
    zone: str | None = None
    others: tuple[str, ...] = ()

    @property
    def names(self) -> ColumnNames:
        """The names of the three required columns."""
        return ColumnNames(self.id_column, self.ds_column, self.y_column)


class BatchManifest(BatchRecord):
    """What a batch computes; the same manifest gives the same bytes. It has no time of its own.

    Attributes:
        schema_version: The version of this format.
        as_of: The date or the moment of the forecasts.
        model: The model.
        horizon: Steps ahead.
        level: The intervals, in percent.
        quantiles: The quantiles.
        reading: How the input is read.
        source: What identifies the input.
        future, static: What identifies the future of covariates and the static features, if they are data sets of their own.
        limit: The number of series, None for all.
        seed: Of the hash of a shuffle.
        shard_rows: The rows of a shard, and of a step of a shuffle.
        layout: How whole series are found.
        shards: The parts, each of which becomes a file.
        slabs: The pieces that each step of a shuffle reads.
        future_slabs: Those of a shuffle of the future of covariates.
        ids: The ids of a limited batch.
    """

    schema_version: int = SCHEMA_VERSION
    as_of: str
    model: BatchModel
    horizon: int
    level: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    reading: ReadingOptions
    source: InputSummary
    future: InputSummary | None = None
    static: InputSummary | None = None
    limit: int | None = None
    seed: int = 0
    shard_rows: int
    layout: str
    shards: tuple[Shard, ...]
    slabs: tuple[tuple[Piece, ...], ...] = ()
    future_slabs: tuple[tuple[Piece, ...], ...] = ()
    ids: tuple[str, ...] | None = None

    @property
    def folder(self) -> str:
        """The folder of its own files: this manifest and the records of the shards."""
        return f"{FOLDER}/{format_folder(self.as_of)}"

    def lock_name(self, share: int) -> str:
        """Returns the name of the lock of a job; it looks like a draft, and is removed with them."""
        return f"{self.folder}/.job-{share}.lock"

    @property
    def shuffle_folder(self) -> str:
        """The folder of the temporary files of a shuffle, below the scratch folder."""
        return f"_shuffle/{format_folder(self.as_of)}"

    @property
    def folders(self) -> tuple[str, ...]:
        """All folders with files of this batch, apart from a shuffle."""
        night = format_folder(self.as_of)
        return self.folder, night, f"_rejects/{night}"

    def forecast_name(self, shard: int) -> str:
        """Returns the name of the file with the forecasts of a shard."""
        return f"{format_folder(self.as_of)}/part-{shard:05d}.parquet"

    def rejects_name(self, shard: int) -> str:
        """Returns the name of the file with the rejects of a shard."""
        return f"_rejects/{format_folder(self.as_of)}/part-{shard:05d}.parquet"

    def record_name(self, shard: int) -> str:
        """Returns the name of the record of a shard."""
        return f"{self.folder}/shards/{shard:05d}.json"


class ShardRecord(BatchRecord):
    """The result of a finished shard; it is written after the files that it names.

    Attributes:
        shard: Its number.
        series: The number of its series.
        rejected: Those of them without a forecast.
        rows: The rows of the forecasts.
        warnings: The number of warnings about forecasts.
        repairs: The first messages about repaired rows.
        forecasts, rejects: Digest and size of the files; None if there is no row.
        seconds, cpu_seconds: The seconds of reading, forecasting and writing, and of processor time.
        peak_mib: The peak memory of the process so far.
    """

    shard: int
    series: int
    rejected: int
    rows: int
    warnings: int
    repairs: tuple[str, ...]
    forecasts: StoredFile | None
    rejects: StoredFile | None
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    peak_mib: float


class NightRecord(BatchRecord):
    """A finished batch in the catalogue of an archive."""

    as_of: str
    model: BatchModel
    horizon: int
    level: tuple[float, ...]
    quantiles: tuple[float, ...]
    id_column: str
    ds_column: str
    files: int
    series: int
    rejected: int
    rows: int


class Catalogue(BatchRecord):
    """The finished batches of an archive, ordered by `as_of`."""

    schema_version: int = SCHEMA_VERSION
    nights: tuple[NightRecord, ...] = ()


def parse_as_of(text: str) -> str:
    """Returns a date (2026-01-31), or a moment to the minute or second (2026-01-31T02:30); raises InputError."""
    try:
        moment = pd.Timestamp(text)
        if (
            pd.isna(moment)
            or not text[:4].isdigit()
            or moment.tz is not None
            or moment.microsecond
            or moment.nanosecond
        ):
            raise ValueError
    except ValueError:
        raise InputError(
            f"Expected a date, or a moment to the second without an offset, as `as_of`; found {text!r}. Write it like 2026-01-31 "
            "or 2026-01-31T02:30.",
            where="as_of",
        ) from None
    if moment == moment.normalize():
        return moment.strftime("%Y-%m-%d")
    return moment.strftime("%Y-%m-%dT%H:%M:%S" if moment.second else "%Y-%m-%dT%H:%M")


def format_folder(as_of: str) -> str:
    """Returns the folder of a night as Hive names it: `as_of=2026-01-31`."""
    return f"as_of={quote(as_of, safe='')}"


def read_manifest(store: Store, as_of: str) -> BatchManifest | None:
    """Reads the manifest of a night; returns None if there is none. Raises InputError if it cannot be read."""
    name = f"{FOLDER}/{format_folder(as_of)}/manifest.json"
    return _read_record(store, name, BatchManifest) if store.exists(name) else None


def write_manifest(store: Store, manifest: BatchManifest) -> None:
    """Writes the manifest of a night."""
    store.write_bytes(f"{manifest.folder}/manifest.json", _to_json(manifest))


def validate_same_batch(manifest: BatchManifest, planned: dict[str, Any], *, where: str) -> None:
    """Raises ManifestMismatch if a batch was started with another model, input or option than those that are planned now."""
    for field, expected in planned.items():
        found = getattr(manifest, field)
        if expected != found:
            raise ManifestMismatch(
                f"Expected the {_FIELD_NAMES[field]} with which the batch of {manifest.as_of} was started in {where}, "
                f"{_show(found)}; found {_show(expected)}. Run it as it was started to finish it, or begin another with a "
                "different --as-of or --out.",
                where=field,
            )


def find_shard_records(
    store: Store, manifest: BatchManifest, shards: Sequence[int], *, verify: bool = True
) -> dict[int, ShardRecord]:
    """Returns the records of the finished shards among some.

    With `verify`, the files of a shard must exist with the recorded digests; otherwise it is not finished.
    """
    sizes = {name: size for folder in manifest.folders for name, size in store.list_files(folder).items()}
    records = {}
    for shard in shards:
        if manifest.record_name(shard) in sizes:
            record = _read_shard_record(store, manifest, shard)
            if record is not None and (not verify or _has_files(store, manifest, record, sizes)):
                records[shard] = record
    return records


def _read_shard_record(store: Store, manifest: BatchManifest, shard: int) -> ShardRecord | None:
    """Returns the record of a shard; None if it is damaged, so that the shard is computed again."""
    try:
        return _read_record(store, manifest.record_name(shard), ShardRecord)
    except InputError:
        return None


def _has_files(store: Store, manifest: BatchManifest, record: ShardRecord, sizes: Mapping[str, int]) -> bool:
    """Whether the files of a shard exist as they were written."""
    files = {
        manifest.forecast_name(record.shard): record.forecasts,
        manifest.rejects_name(record.shard): record.rejects,
    }
    return all(
        expected is None or (sizes.get(name) == expected.size and store.compute_digest(name) == expected)
        for name, expected in files.items()
    )


def write_shard_record(store: Store, manifest: BatchManifest, record: ShardRecord) -> None:
    """Writes the record of a finished shard."""
    store.write_bytes(manifest.record_name(record.shard), _to_json(record))


def read_catalogue(store: Store) -> Catalogue:
    """Reads the catalogue of an archive, an empty one if there is none; raises InputError if it cannot be read."""
    return _read_record(store, CATALOGUE_FILE, Catalogue) if store.exists(CATALOGUE_FILE) else Catalogue()


def add_to_catalogue(store: Store, night: NightRecord) -> None:
    """Adds a night to the catalogue, in place of an earlier one of the same `as_of`."""
    others = [other for other in read_catalogue(store).nights if other.as_of != night.as_of]
    nights = tuple(sorted([*others, night], key=lambda item: item.as_of))
    store.write_bytes(CATALOGUE_FILE, _to_json(Catalogue(nights=nights)))


def _to_json(record: BatchRecord) -> bytes:
    return record.model_dump_json(indent=1).encode() + b"\n"


def _read_record(store: Store, name: str, kind: type[_RecordT]) -> _RecordT:
    try:
        return kind.model_validate_json(store.read_bytes(name))
    except ValidationError as error:
        shown = f"{store.shown_location}/{name}"
        first = error.errors()[0]
        raise InputError(
            f"Expected a {kind.__name__} in {shown}; {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}. Remove "
            "the file to start again, or use the version of the package that wrote it.",
            where=shown,
        ) from error


def _show(value: Any) -> str:
    text = value.model_dump_json() if isinstance(value, BaseModel) else str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


_FIELD_NAMES = {
    "model": "model",
    "horizon": "horizon",
    "level": "intervals (--level)",
    "quantiles": "quantiles (--quantiles)",
    "reading": "options of reading",
    "source": "input",
    "future": "future of covariates (--future)",
    "static": "static features (--static)",
    "limit": "limit",
    "seed": "seed",
    "shard_rows": "shard rows",
    "layout": "layout",
}
