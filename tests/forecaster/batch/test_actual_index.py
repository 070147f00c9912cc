"""Rows of forecasts find the actual of their series and timestamp, and no other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from forecaster.batch import actual_index
from forecaster.batch.actual_index import ActualIndex


def make_index(*, series: int = 50, steps: int = 20, seed: int = 0) -> tuple[ActualIndex, pd.DataFrame]:
    """Returns the index of some of the actuals of a grid, in any order, and their frame."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat([f"é{number}" for number in range(series)], steps),
            "ds": np.tile(np.arange(steps) * 7, series),
            "y": rng.normal(size=series * steps),
        }
    ).sample(frac=0.6, random_state=seed)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    groups = {"digit": pa.chunked_array([[text[-1] for text in frame["unique_id"]]])}
    index = ActualIndex(table.column("unique_id").cast(pa.string()), table.column("ds"), table.column("y"), groups)
    return index, frame


@pytest.mark.parametrize("collides", [False, True], ids=["", "with equal hashes"])
def test_lookups_are_those_of_a_merge(monkeypatch: pytest.MonkeyPatch, collides: bool) -> None:
    if collides:  # by the first seed, some ids have one hash
        whole = actual_index._hash
        monkeypatch.setattr(
            actual_index, "_hash", lambda ids, *, seed: whole(ids, seed=seed) % np.uint64(100 if seed < 2 else 2**63)
        )
    index, frame = make_index()
    rng = np.random.default_rng(1)
    wanted = pd.DataFrame(
        {
            "unique_id": [f"é{number}" for number in rng.integers(0, 60, 500)],
            "ds": rng.integers(-3, 150, 500) // 7 * 7 + (rng.random(500) < 0.1),
        }
    )
    rows = index.find_rows(pa.array(wanted["unique_id"], type=pa.string()), pa.array(wanted["ds"]))
    expected = wanted.merge(frame, on=["unique_id", "ds"], how="left")["y"]
    found = index.take_values(rows).to_pandas()
    assert 50 < found.notna().sum() < 450
    np.testing.assert_array_equal(found, expected)
    digits = index.take_group("digit", rows).to_pylist()
    assert digits == [None if np.isnan(y) else text[-1] for text, y in zip(wanted["unique_id"], expected, strict=True)]


def test_no_actuals_and_an_equal_hash_of_another_id_match_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = pa.chunked_array([pa.array([], pa.string())])
    empty = ActualIndex(
        nothing, pa.chunked_array([pa.array([], pa.int64())]), pa.chunked_array([pa.array([], pa.float64())]), {}
    )
    assert empty.find_rows(pa.array(["a"]), pa.array([1])).tolist() == [-1]
    monkeypatch.setattr(actual_index, "_hash", lambda ids, *, seed: np.zeros(len(ids), dtype=np.uint64))
    one = ActualIndex(pa.chunked_array([["a"]]), pa.chunked_array([[1]]), pa.chunked_array([[2.0]]), {})
    assert one.find_rows(pa.array(["a", "b"]), pa.array([1, 1])).tolist() == [0, -1]
