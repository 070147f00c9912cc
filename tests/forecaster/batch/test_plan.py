"""Shards hold whole series of any row groups, and read no more than twice their rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from forecaster.batch.plan import MAX_OVERLAP, Shard, split_by_ids
from forecaster.batch.shuffle import hash_ids
from forecaster.batch.source import IdValue, RowGroup


def make_groups(ids: np.ndarray, *, group_rows: int) -> list[RowGroup]:
    """Returns the row groups of one file whose rows have these ids."""
    parts = [ids[start : start + group_rows].tolist() for start in range(0, len(ids), group_rows)]
    return [RowGroup(0, number, len(part), min(part), max(part)) for number, part in enumerate(parts)]


def contains(shard: Shard, value: IdValue) -> bool:
    return (shard.after is None or value > shard.after) and (shard.until is None or value <= shard.until)


def read_shard(shard: Shard, ids: np.ndarray, *, group_rows: int) -> list[IdValue]:
    """Returns the ids of the rows that a shard reads and keeps."""
    rows = [ids[piece.first * group_rows : piece.stop * group_rows].tolist() for piece in shard.pieces]
    return [value for part in rows for value in part if contains(shard, value)]


@pytest.mark.parametrize("kind", ["text", "numbers"])
@pytest.mark.parametrize("seed", range(20))
def test_every_row_of_sorted_ids_is_in_one_shard_with_its_whole_series(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, size=60)
    names = np.arange(-20, 40) if kind == "numbers" else np.array(sorted(f"ß{number}" for number in range(60)))
    ids = np.repeat(names, lengths)
    for start in range(0, len(ids), 30):  # the order within a row group does not matter
        rng.shuffle(ids[start : start + 30])
    groups = make_groups(ids, group_rows=30)
    shards = split_by_ids(groups, shard_rows=60)
    assert shards is not None
    assert len(shards) > 3
    parts = [read_shard(shard, ids, group_rows=30) for shard in shards]
    assert sorted(value for part in parts for value in part) == sorted(ids.tolist())
    assert all(set(first).isdisjoint(second) for first, second in pairwise(parts))
    for shard in shards:
        assert sum((piece.stop - piece.first) * 30 for piece in shard.pieces) <= MAX_OVERLAP * 60


def test_scattered_ids_large_row_groups_and_absent_statistics_need_a_shuffle() -> None:
    by_day = np.tile(np.arange(40), 10)
    assert split_by_ids(make_groups(by_day, group_rows=20), shard_rows=40) is None
    assert split_by_ids(make_groups(np.sort(by_day), group_rows=200), shard_rows=40) is None
    groups = make_groups(np.sort(by_day), group_rows=20)
    assert split_by_ids(groups, shard_rows=40) is not None
    assert split_by_ids([*groups, RowGroup(1, 0, 20, None, None)], shard_rows=40) is None
    assert split_by_ids([*groups, RowGroup(1, 0, 20, "a", "b")], shard_rows=40) is None


def test_the_bucket_of_an_id_depends_on_its_text_and_the_seed_only() -> None:
    import pyarrow as pa

    ids = pa.array([f"s{number}" for number in range(1000)] + [None])
    buckets = hash_ids(ids, buckets=8, seed=0)
    assert buckets[:4].tolist() == [5, 1, 5, 5]  # stored shuffles are continued by later versions
    assert np.array_equal(hash_ids(ids.take(pa.array([5, 900])), buckets=8, seed=0), buckets[[5, 900]])
    assert np.bincount(buckets).min() > 90
    assert not np.array_equal(hash_ids(ids, buckets=8, seed=1), buckets)
