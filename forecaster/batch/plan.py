"""The plan of a batch: shards of whole series with a bounded number of rows, from row groups or from buckets of a shuffle.

The future of covariates, if it is a data set of its own, is divided as the shards are.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from forecaster.batch.source import IdRange, IdValue, InputSummary, Piece, RowGroup, Source
from forecaster.errors import InputError

_INTEGER = re.compile("-?[0-9]{1,20}")  # up to 64 bits
MAX_OVERLAP = 2  # a shard may read this many times its rows: of sorted rows it shares a row group with its neighbour

Layout = Literal["auto", "files", "shuffle"]
"""How whole series are found: by the statistics of the ids, by files that are stated to hold whole series, or by a shuffle."""


class Shard(BaseModel):
    """A part of the input with whole series, which becomes one file of forecasts.

    Attributes:
        pieces: The row groups to read; empty for a bucket of a shuffle.
        after, until: The bounds of its ids, the first exclusive; None is unbounded.
        bucket: The number of the bucket of a shuffle.
        future: The row groups of the future of covariates to read; empty if it is shuffled too, or in the input.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pieces: tuple[Piece, ...] = ()
    after: IdValue | None = None
    until: IdValue | None = None
    bucket: int | None = None
    future: tuple[Piece, ...] = ()

    @property
    def ids(self) -> IdRange:
        """The range of its ids."""
        return IdRange(self.after, self.until)


class ShardPlan(NamedTuple):
    """All shards; with shuffles also the pieces that each of their steps reads; with a limit the ids of the series."""

    shards: tuple[Shard, ...]
    slabs: tuple[tuple[Piece, ...], ...] = ()
    ids: tuple[str, ...] | None = None
    future_slabs: tuple[tuple[Piece, ...], ...] = ()


def plan_shards(
    source: Source,
    summary: InputSummary,
    groups: Sequence[RowGroup],
    *,
    shard_rows: int,
    layout: Layout = "auto",
    limit: int | None = None,
) -> ShardPlan:
    """Plans the shards of an input; the same input and arguments give the same plan.

    Args:
        source: The input, of which only ids are read, and these only with a limit.
        summary: Its number of rows.
        groups: Its row groups.
        shard_rows: The rows that a shard has at most, unless one series is longer or `layout` is `files`.
        layout: How whole series are found.
        limit: The number of series to forecast, the first of the plan; None forecasts all.
    """
    shards = _plan_without_shuffle(summary, groups, shard_rows=shard_rows, layout=layout)
    if shards is not None:
        return ShardPlan(shards) if limit is None else _limit_shards(source, shards, limit)
    slabs = tuple(_pack_slabs(groups, slab_rows=shard_rows))
    num_buckets = max(1, -(-summary.rows // shard_rows))
    ids = None
    if limit is not None:
        ids = _read_first_ids(source, [Shard(pieces=slab) for slab in slabs], limit)[0]
        num_buckets = min(num_buckets, len(ids))
    return ShardPlan(tuple(Shard(bucket=number) for number in range(num_buckets)), slabs, ids)


def _plan_without_shuffle(
    summary: InputSummary, groups: Sequence[RowGroup], *, shard_rows: int, layout: Layout
) -> tuple[Shard, ...] | None:
    if layout == "files":
        return tuple(_pack_files(groups, shard_rows=shard_rows))
    if layout == "shuffle":
        return None
    if summary.rows <= shard_rows:
        return (Shard(pieces=tuple(_merge_groups(groups))),)
    return split_by_ids(groups, shard_rows=shard_rows)


def split_by_ids(groups: Sequence[RowGroup], *, shard_rows: int) -> tuple[Shard, ...] | None:
    """Splits row groups at ids, so that each shard has the rows of whole series; None if that would read too many rows.

    Any id may separate two shards, because both read the row groups in which it lies. Rows that are sorted by id, or files with
    separate ranges of ids, are read little more than once. The order within a row group does not matter.
    """
    kinds = {type(bound) for group in groups for bound in (group.lowest, group.highest)}
    if kinds not in ({str}, {int}):
        return None
    bounded = sorted((_key(group.highest), _key(group.lowest), group) for group in groups)
    thresholds: list[IdValue] = []
    rows, last = 0, bounded[0][2].highest
    for _, _, group in bounded:
        if rows and rows + group.rows > shard_rows and (not thresholds or _key(last) > _key(thresholds[-1])):
            assert last is not None
            thresholds.append(last)
            rows = 0
        rows += group.rows
        last = group.highest
    if thresholds and _key(thresholds[-1]) == _key(last):
        thresholds.pop()
    shards = []
    for after, until in zip([None, *thresholds], [*thresholds, None], strict=True):
        read = [
            group
            for highest, lowest, group in bounded
            if (after is None or highest > _key(after)) and (until is None or lowest <= _key(until))
        ]
        if sum(group.rows for group in read) > MAX_OVERLAP * shard_rows:
            return None
        shards.append(Shard(pieces=tuple(_merge_groups(read)), after=after, until=until))
    return tuple(shards)


def plan_future(
    plan: ShardPlan, groups: Sequence[RowGroup], future: Sequence[RowGroup], *, shard_rows: int
) -> ShardPlan:
    """Plans which rows of the future of covariates each shard reads.

    A shard reads the row groups that may have its ids, if all shards together read little more than there is, or no more than
    they read of the histories. Otherwise the future is shuffled into one bucket for each shard, by the ranges of ids of the
    shards or by the hash of their shuffle.

    Args:
        plan: The shards.
        groups: The row groups of the histories.
        future: Those of the future.
        shard_rows: The rows of a step of a shuffle.
    Raises:
        InputError: The shards are stated files, whose ids cannot be found.
    """
    bounds = {(group.file, group.number): group for group in groups}
    read = [_find_overlapping(future, _find_id_bounds(shard, bounds)) for shard in plan.shards]
    num_read, num_future = sum(group.rows for each in read for group in each), sum(group.rows for group in future)
    if len(read) == 1 or num_read <= max(MAX_OVERLAP * num_future, sum(group.rows for group in groups)):
        shards = zip(plan.shards, read, strict=True)
        with_future = (shard.model_copy(update={"future": tuple(_merge_groups(each))}) for shard, each in shards)
        return plan._replace(shards=tuple(with_future))
    if not all(shard.bucket is not None or shard.ids != IdRange() for shard in plan.shards):
        raise InputError(
            "Expected the future of covariates in the order of ids with `--layout files`; its files have no separate ranges of "
            "ids. Sort it by id, or leave --layout files out.",
            where="future",
        )
    return plan._replace(future_slabs=tuple(_pack_slabs(future, slab_rows=shard_rows)))


def find_id_ranges(texts: Sequence[str], thresholds: Sequence[IdValue | None]) -> list[int]:
    """Returns for each id the index of the first range that ends at or after it; their number if none does.

    Args:
        texts: The ids.
        thresholds: The last id of each range, in order; the last one may be None, unbounded.
    """
    bounds = [_key(threshold) for threshold in thresholds if threshold is not None]
    if not any(isinstance(threshold, int) for threshold in thresholds):
        return [bisect_left(bounds, text.encode()) for text in texts]
    keys = [_find_integer_key(text) for text in texts]
    return [len(thresholds) if key is None else bisect_left(bounds, key) for key in keys]


class _IdBounds(NamedTuple):
    """The first and the last id that a shard may have; None is unbounded."""

    lowest: IdValue | None
    highest: IdValue | None


def _find_id_bounds(shard: Shard, groups: Mapping[tuple[int, int], RowGroup]) -> _IdBounds:
    if shard.bucket is not None or shard.ids != IdRange():
        return _IdBounds(shard.after, shard.until)
    read = [groups[piece.file, number] for piece in shard.pieces for number in range(piece.first, piece.stop)]
    kinds = {type(bound) for group in read for bound in (group.lowest, group.highest)}
    if kinds not in ({str}, {int}):
        return _IdBounds(None, None)
    return _IdBounds(min((group.lowest for group in read), key=_key), max((group.highest for group in read), key=_key))


def _find_overlapping(groups: Sequence[RowGroup], bounds: _IdBounds) -> list[RowGroup]:
    """Returns the row groups that may have ids within bounds; ids of another type may be anywhere."""

    def is_before(first: IdValue | None, second: IdValue | None) -> bool:
        return type(first) is type(second) and first is not None and _key(first) < _key(second)

    return [
        group
        for group in groups
        if not is_before(group.highest, bounds.lowest) and not is_before(bounds.highest, group.lowest)
    ]


def _key(bound: IdValue | None) -> bytes:
    """Returns bytes in the order of Parquet: text as UTF-8, integers of up to 64 bits with the highest byte first."""
    assert bound is not None
    return bound.encode() if isinstance(bound, str) else (bound + (1 << 63)).to_bytes(9, "big")


def _find_integer_key(text: str) -> bytes | None:
    """Returns the key of an integer in text; None if it is none of up to 64 bits, with a sign or without."""
    number = int(text) if _INTEGER.fullmatch(text) else None
    return _key(number) if number is not None and -(1 << 63) <= number < 1 << 64 else None


def _merge_groups(groups: Sequence[RowGroup]) -> Iterator[Piece]:
    """Yields the pieces of row groups in the order of files, neighbours as one."""
    ordered = sorted((group.file, group.number) for group in groups)
    for _, run in groupby(enumerate(ordered), key=lambda item: (item[1][0], item[1][1] - item[0])):
        members = [member for _, member in run]
        yield Piece(members[0][0], members[0][1], members[-1][1] + 1)


def _pack_files(groups: Sequence[RowGroup], *, shard_rows: int) -> Iterator[Shard]:
    """Yields shards of whole files."""
    packed: list[RowGroup] = []
    for _, members in groupby(groups, key=lambda group: group.file):
        file_groups = list(members)
        if packed and sum(group.rows for group in [*packed, *file_groups]) > shard_rows:
            yield Shard(pieces=tuple(_merge_groups(packed)))
            packed = []
        packed += file_groups
    if packed:
        yield Shard(pieces=tuple(_merge_groups(packed)))


def _pack_slabs(groups: Sequence[RowGroup], *, slab_rows: int) -> Iterator[tuple[Piece, ...]]:
    """Yields the pieces that each step of a shuffle reads, in the order of files."""
    packed: list[RowGroup] = []
    for group in groups:
        if packed and sum(other.rows for other in packed) + group.rows > slab_rows:
            yield tuple(_merge_groups(packed))
            packed = []
        packed.append(group)
    if packed:
        yield tuple(_merge_groups(packed))


def _limit_shards(source: Source, shards: Sequence[Shard], limit: int) -> ShardPlan:
    ids, num_shards = _read_first_ids(source, shards, limit)
    return ShardPlan(tuple(shards[:num_shards]), ids=ids)


def _read_first_ids(source: Source, shards: Sequence[Shard], limit: int) -> tuple[tuple[str, ...], int]:
    """Returns the first distinct ids, and the number of shards that have them."""
    if limit < 1:
        raise InputError(f"Expected `limit` of at least 1; found {limit}. Leave it out for all series.", where="limit")
    ids: dict[str, None] = {}
    for number, shard in enumerate(shards, start=1):
        for piece in shard.pieces:
            for values in source.iter_ids(piece, shard.ids):
                ids |= dict.fromkeys(value for value in values.unique().to_pylist() if value is not None)
                if len(ids) >= limit:
                    return tuple(ids)[:limit], number
    return tuple(ids), len(shards)
