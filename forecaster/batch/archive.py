"""The archive of batches: one folder of forecasts for each night, which is read back by `as_of`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.dataset as pads  # type: ignore[import-untyped]

from forecaster.batch.manifest import Catalogue, NightRecord, format_folder, parse_as_of, read_catalogue
from forecaster.batch.stores import Store
from forecaster.errors import InputError, MissingColumn, NoData


def list_nights(path: str) -> tuple[NightRecord, ...]:
    """Returns the finished batches of an archive, ordered by `as_of`; raises NoData if there is none."""
    return _open_catalogue(Store(str(path))).nights


def open_archive(path: str, *, as_of: str | Sequence[str] | None = None) -> Any:
    """Opens the forecasts of some nights as a `pyarrow.dataset.Dataset`, which is scanned in bounded memory.

    Args:
        path: The folder of the archive, a path or URL.
        as_of: One night or several; by default all that are finished.
    Raises:
        NoData: The archive has no such night, or it is not finished.
        InputError: The nights have different columns of ids or timestamps.
    """
    store = Store(str(path))
    nights = _select_nights(_open_catalogue(store), as_of, where=store.shown_location)
    if len({(night.id_column, night.ds_column) for night in nights}) > 1:
        raise InputError(
            "Expected nights with the same columns of ids and timestamps; found different ones. Read them one by one (`as_of`).",
            where="as_of",
        )
    folders = [format_folder(night.as_of) for night in nights]
    names = [name for folder in folders for name in store.list_files(folder) if name.endswith(".parquet")]
    filesystem, paths = store.open_filesystem(names)
    parts = [
        pads.dataset(path, format="parquet", filesystem=filesystem) for path in _first_of_each(folders, names, paths)
    ]
    schema = pa.unify_schemas([part.schema for part in parts], promote_options="permissive")
    return pads.dataset(paths, schema=schema, format="parquet", filesystem=filesystem)


def read_archive(
    path: str, *, as_of: str | Sequence[str] | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Reads the forecasts of some nights as a table.

    Args:
        path: The folder of the archive, a path or URL.
        as_of: One night or several; by default all that are finished.
        columns: The columns to read; by default all: id, timestamp, step ahead, `forecaster` and its intervals, the scale
            of MASE, and what identifies night and model (`as_of`, `model_version`, `model_digest`).
    Raises:
        NoData, InputError: As `open_archive`.
        MissingColumn: There is no such column.
    """
    dataset = open_archive(path, as_of=as_of)
    unknown = [name for name in columns or () if name not in dataset.schema.names]
    if unknown:
        raise MissingColumn(
            f"Expected columns among {', '.join(dataset.schema.names)}; found {unknown[0]!r}. Name others.",
            where=unknown[0],
        )
    return dataset.to_table(columns=None if columns is None else list(columns))


def _open_catalogue(store: Store) -> Catalogue:
    catalogue = read_catalogue(store)
    if not catalogue.nights:
        raise NoData(
            f"Expected an archive with a finished batch in {store.shown_location}; found none. Run `forecaster batch` to its end "
            "first, or correct the path.",
            where=store.shown_location,
        )
    return catalogue


def _select_nights(catalogue: Catalogue, as_of: str | Sequence[str] | None, *, where: str) -> list[NightRecord]:
    if as_of is None:
        return list(catalogue.nights)
    wanted = [parse_as_of(text) for text in ([as_of] if isinstance(as_of, str) else as_of)]
    existing = [night.as_of for night in catalogue.nights]
    missing = [text for text in wanted if text not in existing]
    if missing or not wanted:
        raise NoData(
            f"Expected a finished batch of {', '.join(missing) or 'one night at least'} in {where}; found {', '.join(existing)}. "
            "Name one of these, or finish that batch.",
            where="as_of",
        )
    return [night for night in catalogue.nights if night.as_of in wanted]


def _first_of_each(folders: Sequence[str], names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Returns a file of each night, whose columns all its files have."""
    firsts = []
    for folder in folders:
        found = [path for name, path in zip(names, paths, strict=True) if name.startswith(f"{folder}/")]
        firsts += found[:1]
    return firsts
