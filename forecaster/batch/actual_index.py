"""The actuals of many series in sorted arrays, in which the rows of forecasts find theirs, a part at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from forecaster.errors import DuplicateStamp
from forecaster.shapes import Int

_HASHED_IDS = 1 << 20  # at a time, because each becomes a Python object


class ActualIndex:
    """Actuals by series and timestamp: some 30 bytes for each, and every id once.

    Ids are found by a hash and then compared, so that a match is exact.

    Args:
        ids: Text.
        ds: Timestamps or integers, of the type of the forecasts.
        y: The values; null where not observed.
        groups: Columns by which scores are grouped, as text.
    Raises:
        DuplicateStamp: A series has two rows at one timestamp.
    """

    def __init__(
        self, ids: pa.ChunkedArray, ds: pa.ChunkedArray, y: pa.ChunkedArray, groups: Mapping[str, pa.ChunkedArray]
    ) -> None:
        is_keyed = pc.and_(pc.is_valid(ids), pc.is_valid(ds))
        ids, ds, y = ids.filter(is_keyed), ds.filter(is_keyed), y.filter(is_keyed)
        encoded = ids.combine_chunks().dictionary_encode()
        self._ids = encoded.dictionary
        self._times, time_codes = np.unique(ds.cast(pa.int64()).to_numpy(), return_inverse=True)
        keys = encoded.indices.to_numpy().astype(np.int64) * max(1, len(self._times)) + time_codes
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._refuse_repeated(ds.type)
        taken = pa.array(order)
        self._y = y.combine_chunks().take(taken)
        self._groups = {
            name: column.filter(is_keyed).combine_chunks().dictionary_encode().take(taken)
            for name, column in groups.items()
        }
        self._seed, self._hashes = 0, _hash(self._ids, seed=0)
        while len(np.unique(self._hashes)) < len(self._hashes):
            self._seed += 1
            self._hashes = _hash(self._ids, seed=self._seed)
        self._hash_order = np.argsort(self._hashes, kind="stable")
        self._hashes = self._hashes[self._hash_order]

    def find_rows(self, ids: pa.Array, ds: pa.Array) -> Int[np.ndarray, "row"]:
        """Returns the row of the actual of each forecast, for `take_values` and `take_groups`; -1 where there is none."""
        encoded = ids.dictionary_encode()
        code_of_id = self._find_ids(encoded.dictionary)
        id_codes = code_of_id[encoded.indices.to_numpy()]
        time_codes = _search(self._times, ds.cast(pa.int64()).to_numpy())
        rows = _search(self._keys, id_codes * max(1, len(self._times)) + time_codes)
        return np.where((id_codes >= 0) & (time_codes >= 0), rows, -1)

    def take_values(self, rows: Int[np.ndarray, "row"]) -> pa.Array:
        """Returns the actuals of rows; null where a row is -1, or was not observed."""
        return self._y.take(_to_indices(rows))

    def take_group(self, name: str, rows: Int[np.ndarray, "row"]) -> pa.Array:
        """Returns the group of rows as text; null where a row is -1."""
        return self._groups[name].take(_to_indices(rows)).cast(pa.string())

    def _find_ids(self, ids: pa.Array) -> Int[np.ndarray, "id"]:
        """Returns the code of each id; -1 for one without actuals."""
        places = _search(self._hashes, _hash(ids, seed=self._seed))
        codes = np.where(places >= 0, self._hash_order[places], -1) if len(self._hashes) else places
        is_same = pc.fill_null(pc.equal(self._ids.take(_to_indices(codes)), ids), fill_value=False)
        return np.where(is_same.to_numpy(zero_copy_only=False), codes, -1)

    def _refuse_repeated(self, time_type: pa.DataType) -> None:
        repeated = self._keys[:-1][np.diff(self._keys) == 0]
        if not len(repeated):
            return
        id_code, time_code = divmod(int(repeated[0]), len(self._times))
        series = self._ids[id_code].as_py()
        timestamp = pa.scalar(int(self._times[time_code])).cast(time_type).as_py()
        raise DuplicateStamp(
            f"Expected one actual for each series and timestamp; series {series!r} has "
            f"{int((self._keys == repeated[0]).sum())} at {timestamp}. Keep one of them.",
            where=series,
        )


def _hash(ids: pa.Array, *, seed: int) -> np.ndarray:
    """Returns 64 bits for each id."""
    parts = [
        pd.util.hash_array(
            ids.slice(start, _HASHED_IDS).to_numpy(zero_copy_only=False).astype(object),
            hash_key=f"{seed:016d}",
            categorize=False,
        )
        for start in range(0, len(ids), _HASHED_IDS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint64)


def _search(sorted_values: np.ndarray, values: np.ndarray) -> Int[np.ndarray, "row"]:
    """Returns the place of each value in sorted distinct values; -1 where it is absent."""
    if not len(sorted_values):
        return np.full(len(values), -1)
    places = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return np.where(sorted_values[places] == values, places, -1)


def _to_indices(rows: Int[np.ndarray, "row"]) -> pa.Array:
    return pa.array(rows, mask=rows < 0)
