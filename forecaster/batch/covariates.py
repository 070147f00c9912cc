"""The future of covariates and the static features of a batch, from data sets of their own, and what a shard reads of them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]

from forecaster.batch.csv_files import CSV_SUFFIXES
from forecaster.batch.manifest import BatchManifest
from forecaster.batch.plan import Shard
from forecaster.batch.shuffle import Shuffle, keep_ids, read_bucket
from forecaster.batch.source import (
    PARQUET_SUFFIX,
    InputColumns,
    InputSummary,
    Piece,
    RowGroup,
    Source,
    concat_rows,
    open_source,
)
from forecaster.data.frames.rows import ColumnNames
from forecaster.errors import InputError
from forecaster.prediction.fitted_model import FittedModel, StoredModel

_BATCH_ROWS = 1 << 18
_SUFFIXES = (PARQUET_SUFFIX, *CSV_SUFFIXES)


class CovariateSources(NamedTuple):
    """The data sets of a batch besides the histories.

    Attributes:
        future: The covariates after the histories; None if the histories have them, or the model reads none.
        static: The static features; None if the histories have them, or the model reads none.
    """

    future: Source | None = None
    static: Source | None = None

    @property
    def opened(self) -> list[Source]:
        """Those that there are."""
        return [source for source in self if source is not None]


class SummarizedCovariates(NamedTuple):
    """What identifies the data sets, and the row groups of the future; None and nothing where there is no data set."""

    future: InputSummary | None
    static: InputSummary | None
    future_groups: list[RowGroup]


class ShardCovariates(NamedTuple):
    """The rows of the series of a shard; None where there is no data set."""

    future: pa.Table | None
    static: pa.Table | None


def open_covariates(
    model: FittedModel | StoredModel, names: ColumnNames, *, future: str | None, static: str | None
) -> CovariateSources:
    """Opens the data sets of the covariates and the static features that a model reads.

    Raises:
        InputError: The model does not read them.
        NoData, SourceNotFound: There is no file.
    """
    for name, location, columns in (
        ("future", future, model.spec.covariates),
        ("static", static, model.spec.static_columns),
    ):
        if location is not None and not columns:
            kind = "covariates" if name == "future" else "static features"
            raise InputError(
                f"Expected no `{name}`, because the model {model.spec.name!r} reads no {kind}. Leave it out, or use "
                "another model.",
                where=name,
            )
    numbers = tuple(name for name in model.spec.covariates if name not in model.encoding.categories)
    later = InputColumns(names.unique_id, (names.ds, *model.spec.covariates), numbers)
    features = InputColumns(names.unique_id, model.spec.static_columns)
    return CovariateSources(
        None if future is None else open_source(future, later, suffixes=_SUFFIXES),
        None if static is None else open_source(static, features, suffixes=_SUFFIXES),
    )


def summarize_covariates(sources: CovariateSources) -> SummarizedCovariates:
    """Reads the footers of all files; raises InputError if the static features have two rows of a series."""
    future, groups = (None, []) if sources.future is None else sources.future.summarize()
    static = None
    if sources.static is not None:
        static, _ = sources.static.summarize()
        load_static(sources.static, static.fingerprint)
    return SummarizedCovariates(future, static, groups)


@lru_cache(maxsize=1)
def load_static(source: Source, fingerprint: str) -> pa.Table:  # noqa: ARG001 (a part of the key of the cache)
    """Reads the static features of all series, once per process.

    Raises InputError if a series has two rows.
    """
    _, groups = source.summarize()
    table = source.read([Piece(group.file, group.number, group.number + 1) for group in groups])
    ids = table.column(source.columns.unique_id)
    if len(ids.unique()) < len(ids):
        raise InputError(
            f"Expected one row for each series in `static`; found {len(ids)} rows for {len(ids.unique())} series. Remove the "
            "others.",
            where="static",
        )
    return table


def read_covariates(
    sources: CovariateSources,
    manifest: BatchManifest,
    shuffle: Shuffle | None,
    shard: Shard,
    *,
    bucket: int,
    ids: pa.Array,
) -> ShardCovariates:
    """Reads the future of covariates and the static features of the series of a shard.

    Args:
        sources: The data sets.
        manifest: The batch.
        shuffle: Where the future is, if it was shuffled.
        shard: Its plan.
        bucket: Its number, which its bucket of the shuffle has too.
        ids: The ids of its series.
    """
    later, features = None, None
    if shuffle is not None:
        later = read_bucket(shuffle, bucket, ids=ids)
    elif sources.future is not None:
        later = _read_pieces(sources.future, shard, ids)
    if sources.static is not None:
        assert manifest.static is not None
        table = load_static(sources.static, manifest.static.fingerprint)
        features = keep_ids(table, sources.static.columns.unique_id, ids)
    return ShardCovariates(later, features)


def _read_pieces(source: Source, shard: Shard, ids: pa.Array) -> pa.Table | None:
    """Returns the future of some series; None if there is none."""
    name = source.columns.unique_id
    tables = [
        keep_ids(table, name, ids)
        for piece in shard.future
        for table in source.iter_rows(piece, batch_rows=_BATCH_ROWS)
    ]
    if not sum(table.num_rows for table in tables):
        return None
    return concat_rows(tables, where=source.shown_location)
