"""Files where they lie: on this machine, or in a store of objects by its address (`s3://`, `memory://`), through fsspec."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from forecaster.errors import InputError, MissingPackage, SourceNotFound, SourceUnavailable
from pipelines.redaction import has_password, mask_passwords, redact
from pipelines.sources.tables import TABLE_SUFFIXES, SourceFile, is_table_name


class SourceFolder(NamedTuple):
    """The files of a folder, in no order; what lies deeper is not among them."""

    location: str
    files: tuple[SourceFile, ...]


def find_source(source: str, *, alternatives: str) -> SourceFile | SourceFolder:
    """The file or the folder of a path or address.

    Args:
        source: A path, or an address with a scheme.
        further: What else a source may be, for the message.
    Raises SourceNotFound, SourceUnavailable where a store does not answer, MissingPackage where its package is not there.
    """
    found = _find_in_store(source) if "://" in source else _find_local(Path(source))
    if found is None and is_table_name(source):
        raise SourceNotFound(f"Expected a file at {source}; found none. Check the path.", where=source)
    if found is None or (isinstance(found, SourceFile) and not is_table_name(found.name)):
        raise SourceNotFound(
            f"Expected a file ending in {', '.join(TABLE_SUFFIXES)}, a folder of such files, or {alternatives}; found "
            f"{source!r}. Convert the file, or give another.",
            where=source,
        )
    return found


def _find_local(path: Path) -> SourceFile | SourceFolder | None:
    def file(one: Path) -> SourceFile:
        return SourceFile(one.name, str(one), lambda: one)

    if path.is_dir():
        return SourceFolder(str(path), tuple(file(one) for one in path.iterdir() if one.is_file()))
    return file(path) if path.is_file() else None


def _find_in_store(source: str) -> SourceFile | SourceFolder | None:
    if has_password(source):
        raise InputError(
            f"Expected an address without a password; found one in {mask_passwords(source)}. Put it into the environment: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, FORECASTER_SQL_URL for a database (with --sql).",
            where=mask_passwords(source),
        )
    scheme = source.split("://")[0]
    with _translate_store_errors(source):
        try:
            import fsspec

            store, path = fsspec.core.url_to_fs(source)
        except ImportError as error:
            raise MissingPackage(
                f"Expected the packages that read {scheme}://; {error}. Install forecaster[sources], and what the store "
                "itself needs (s3fs, gcsfs, adlfs).",
                where=source,
            ) from error
        if store.isdir(path):
            entries = [one for one in store.ls(path, detail=True) if one["type"] == "file"]
            return SourceFolder(source, tuple(_make_store_file(store, one["name"], source=source) for one in entries))
        return _make_store_file(store, path, source=None) if store.exists(path) else None


def _make_store_file(store: Any, path: str, *, source: str | None) -> SourceFile:
    name = path.rsplit("/", 1)[-1]
    told = store.unstrip_protocol(path) if source is None else f"{source.rstrip('/')}/{name}"
    return SourceFile(name, told, partial(_read_bytes, store, path, told))


def _read_bytes(store: Any, path: str, location: str) -> IO[bytes]:
    with _translate_store_errors(location):
        return io.BytesIO(store.cat_file(path))


@contextmanager
def _translate_store_errors(source: str) -> Iterator[None]:
    """Where the exceptions of stores, which are of any kind, become ours; what they say may hold a key."""
    try:
        yield
    except (InputError, MissingPackage):
        raise
    except FileNotFoundError:
        raise SourceNotFound(f"Expected a file at {source}; found none. Check the address.", where=source) from None
    except ValueError as error:  # fsspec's, for a scheme that nobody knows
        raise SourceNotFound(
            f"Expected the address of a store that is known; {source}: {redact(str(error))}. Correct it. A database is "
            "named in FORECASTER_SQL_URL and asked with --sql.",
            where=source,
        ) from None
    except Exception as error:  # of any kind: each store has its own
        raise SourceUnavailable(
            f"Expected an answer about {source}; the store says {type(error).__name__}: {redact(str(error))}. Check the "
            "address, the keys in the environment and that the store is up, then try again.",
            where=source,
        ) from None
