"""Finds source files on this machine or, through fsspec, in an object store by URL (`s3://`, `memory://`)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from forecaster.errors import InputError, MissingPackage, SourceNotFound, SourceUnavailable
from forecaster.storage.addresses import redact_addresses
from pipelines.redaction import has_password, redact
from pipelines.sources.source_files import SourceFile
from pipelines.sources.tables import TABLE_SUFFIXES, is_table_name


class SourceFolder(NamedTuple):
    """The files of a folder, unordered, without those of its subfolders."""

    location: str
    files: tuple[SourceFile, ...]


def find_source(source: str, *, alternatives: str) -> SourceFile | SourceFolder:
    """Finds the file or the folder of a path or URL.

    Args:
        source: A path, or a URL with a scheme.
        alternatives: Other kinds of sources, for the error message.

    Raises SourceNotFound; SourceUnavailable if a store does not respond; MissingPackage if its package is not installed.
    """
    match = _find_in_store(source) if "://" in source else _find_local(Path(source))
    if match is None and is_table_name(source):
        raise SourceNotFound(f"Expected a file at {source}; found none. Check the path.", where=source)
    if match is None or (isinstance(match, SourceFile) and not is_table_name(match.name)):
        raise SourceNotFound(
            f"Expected a file ending in {', '.join(TABLE_SUFFIXES)}, a folder of such files, or {alternatives}; found "
            f"{source!r}. Convert the file, or use another.",
            where=source,
        )
    return match


def _find_local(path: Path) -> SourceFile | SourceFolder | None:
    def make_file(file_path: Path) -> SourceFile:
        return SourceFile(file_path.name, str(file_path), lambda: file_path)

    if path.is_dir():
        return SourceFolder(str(path), tuple(make_file(entry) for entry in path.iterdir() if entry.is_file()))
    return make_file(path) if path.is_file() else None


def _find_in_store(source: str) -> SourceFile | SourceFolder | None:
    if has_password(source):
        raise InputError(
            f"Expected a URL without a password; found one in {redact_addresses(source)}. Put it into the environment: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, FORECASTER_SQL_URL for a database (with --sql).",
            where=redact_addresses(source),
        )
    scheme = source.split("://")[0]
    shown = redact_addresses(source)
    with _translate_store_errors(shown):
        try:
            import fsspec

            store, path = fsspec.core.url_to_fs(source)
        except ImportError as error:
            raise MissingPackage(
                f"Expected the packages that read {scheme}://; {error}. Install recurrent-forecaster[sources], and the package "
                "of the store (s3fs, gcsfs, adlfs).",
                where=shown,
            ) from error
        if store.isdir(path):
            entries = [entry for entry in store.ls(path, detail=True) if entry["type"] == "file"]
            return SourceFolder(
                shown, tuple(_make_store_file(store, entry["name"], source=source) for entry in entries)
            )
        return _make_store_file(store, path, source=None) if store.exists(path) else None


def _make_store_file(store: Any, path: str, *, source: str | None) -> SourceFile:
    name = path.rsplit("/", 1)[-1]
    location = store.unstrip_protocol(path) if source is None else f"{source.rstrip('/')}/{name}"
    location = redact_addresses(location)
    return SourceFile(name, location, partial(_read_bytes, store, path, location))


def _read_bytes(store: Any, path: str, location: str) -> IO[bytes]:
    with _translate_store_errors(location):
        return io.BytesIO(store.cat_file(path))


@contextmanager
def _translate_store_errors(source: str) -> Iterator[None]:
    """Translates the exceptions of stores, which may be of any class, to ours; their messages may contain a key."""
    try:
        yield
    except (InputError, MissingPackage):
        raise
    except FileNotFoundError:
        raise SourceNotFound(f"Expected a file at {source}; found none. Check the URL.", where=source) from None
    except ValueError as error:  # raised by fsspec for an unknown scheme
        raise SourceNotFound(
            f"Expected the URL of a supported store; {source}: {redact(str(error))}. Correct it. For a database, set "
            "FORECASTER_SQL_URL and use --sql.",
            where=source,
        ) from None
    except Exception as error:  # each store has its own exception classes
        raise SourceUnavailable(
            f"Expected a response for {source}; the store failed with {type(error).__name__}: {redact(str(error))}. Check the "
            "URL, the keys in the environment and that the store is running, then try again.",
            where=source,
        ) from None
