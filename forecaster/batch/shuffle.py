"""The external shuffle: brings the rows of each series together by its id, in bounded memory and in steps that resume.

Each step reads one slab of the input, sorts its rows into buckets, and writes them as one Arrow file with a record batch for
each bucket. A step whose file exists is finished. A bucket is read from all files at its own offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from forecaster.batch.plan import find_id_ranges
from forecaster.batch.source import IdValue, Piece, Source, concat_rows
from forecaster.batch.stores import Store
from forecaster.shapes import Int
from forecaster.storage.failpoints import fail_point

MAX_FLUSH_ROWS = 2_000_000  # bounds the memory of a step whose row groups are larger


class Shuffle(NamedTuple):
    """Where and how rows are shuffled.

    Attributes:
        source: The input.
        slabs: What each step reads.
        buckets: The number of buckets.
        seed: Of the hash.
        ids: The ids to keep; None keeps all.
        scratch: The folder of the temporary files, a path or URL.
        folder: The name of their folder below it.
        thresholds: The last id of each bucket, in order, if buckets are ranges of ids (the last may be None, unbounded); None
            hashes ids.
    """

    source: Source
    slabs: Sequence[Sequence[Piece]]
    buckets: int
    seed: int
    ids: tuple[str, ...] | None
    scratch: str
    folder: str
    thresholds: tuple[IdValue | None, ...] | None = None

    def file_name(self, step: int) -> str:
        """Returns the name of the file that a step writes."""
        return f"{self.folder}/rows-{step:05d}.arrow"


def find_missing_steps(shuffle: Shuffle) -> list[int]:
    """Returns the steps that have not been finished."""
    names = Store(shuffle.scratch).list_files(shuffle.folder)
    return [step for step in range(len(shuffle.slabs)) if shuffle.file_name(step) not in names]


def run_step(shuffle: Shuffle, step: int) -> int:
    """Writes the rows of one slab by bucket, unless its file exists; returns their number."""
    store, name = Store(shuffle.scratch), shuffle.file_name(step)
    if store.exists(name):
        return 0
    sink, rows = pa.BufferOutputStream(), 0
    tables = _iter_slab(shuffle, step)
    first = next(tables, None)
    if first is not None:
        with pa.ipc.new_file(sink, first.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            for table in chain([first], tables):
                for batch in _split_by_bucket(table.cast(first.schema), shuffle):
                    writer.write_batch(batch)
                rows += table.num_rows
    store.write_bytes(name, sink.getvalue())
    fail_point("batch.shuffled")
    return rows


def read_bucket(shuffle: Shuffle, bucket: int, *, ids: pa.Array | None = None) -> pa.Table | None:
    """Returns the rows of a bucket, in the order of the input, of all series or of some; None if there are none."""
    store, tables = Store(shuffle.scratch), list[pa.Table]()
    for step in range(len(shuffle.slabs)):
        with store.open_file(shuffle.file_name(step)) as file:
            if file.seek(0, 2) == 0:  # a slab without rows
                continue
            reader = pa.ipc.open_file(file)
            for number in range(bucket, reader.num_record_batches, shuffle.buckets):
                table = pa.Table.from_batches([reader.get_batch(number)], reader.schema)
                tables.append(table if ids is None else keep_ids(table, shuffle.source.columns.unique_id, ids))
    if not sum(table.num_rows for table in tables):
        return None
    return concat_rows(tables, where=shuffle.source.shown_location)


def keep_ids(table: pa.Table, column: str, ids: pa.Array) -> pa.Table:
    """Returns the rows of some series."""
    return table.filter(pc.is_in(table.column(column), value_set=ids))


def hash_ids(ids: pa.Array, *, buckets: int, seed: int) -> Int[np.ndarray, "id"]:
    """Returns the bucket of each id, which depends on its text and the seed only; null is in bucket 0."""
    texts = pc.fill_null(ids, "").to_numpy(zero_copy_only=False).astype(object)
    hashes = pd.util.hash_array(texts, hash_key=f"{seed:016d}", categorize=False)
    return np.asarray((hashes % np.uint64(buckets)).astype(np.int64))


def _iter_slab(shuffle: Shuffle, step: int) -> Iterator[pa.Table]:
    """Yields the rows of a slab in tables of at most about MAX_FLUSH_ROWS rows."""
    pending: list[pa.Table] = []
    name = shuffle.source.columns.unique_id
    kept = None if shuffle.ids is None else pa.array(shuffle.ids, type=pa.string())
    for piece in shuffle.slabs[step]:
        for table in shuffle.source.iter_rows(piece, batch_rows=MAX_FLUSH_ROWS // 8):
            pending.append(table if kept is None else keep_ids(table, name, kept))
            if sum(other.num_rows for other in pending) >= MAX_FLUSH_ROWS:
                yield concat_rows(pending, where=shuffle.source.shown_location)
                pending = []
    if pending:
        yield concat_rows(pending, where=shuffle.source.shown_location)


def _split_by_bucket(table: pa.Table, shuffle: Shuffle) -> Iterator[pa.RecordBatch]:
    """Yields one record batch for each bucket, some of them empty; ids beyond all ranges are left out."""
    encoded = table.column(shuffle.source.columns.unique_id).combine_chunks().dictionary_encode()
    if shuffle.thresholds is None:
        of_id = hash_ids(encoded.dictionary, buckets=shuffle.buckets, seed=shuffle.seed)
    else:
        of_id = np.array(find_id_ranges(encoded.dictionary.to_pylist(), shuffle.thresholds), dtype=np.int64)
    codes = pc.fill_null(encoded.indices, -1).to_numpy()
    bucket_of_row = np.append(of_id, 0)[codes]  # a row without an id has the code -1
    order = np.argsort(bucket_of_row, kind="stable")
    ends = np.searchsorted(bucket_of_row[order], np.arange(shuffle.buckets + 1))
    sorted_rows = table.take(pa.array(order)).combine_chunks()
    for bucket in range(shuffle.buckets):
        part = sorted_rows.slice(ends[bucket], ends[bucket + 1] - ends[bucket])
        yield pa.RecordBatch.from_arrays(
            [
                column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
                for column in (part.column(name) for name in part.column_names)
            ],
            schema=table.schema,
        )
