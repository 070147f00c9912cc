"""Files where they lie: on this machine, or in a store of objects by its address (`s3://`, `memory://`), through fsspec."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from forecaster.errors import InputError, MissingPackage, SourceNotFound, SourceUnavailable
from pipelines.redaction import has_password, redacted, without_password
from pipelines.sources.tables import ENDINGS, File, is_table


class Folder(NamedTuple):
    """The files of a folder, in no order; what lies deeper is not among them."""

    told: str
    files: tuple[File, ...]


def find(source: str, *, further: str) -> File | Folder:
    """The file or the folder of a path or address.

    Args:
        source: A path, or an address with a scheme.
        further: What else a source may be, for the message.
    Raises SourceNotFound, SourceUnavailable where a store does not answer, MissingPackage where its package is not there.
    """
    found = _in_store(source) if "://" in source else _here(Path(source))
    if found is None and is_table(source):
        raise SourceNotFound(f"Expected a file at {source}; found none. Check the path.", where=source)
    if found is None or (isinstance(found, File) and not is_table(found.name)):
        raise SourceNotFound(
            f"Expected a file ending in {', '.join(ENDINGS)}, a folder of such files, or {further}; found "
            f"{source!r}. Convert the file, or give another.",
            where=source,
        )
    return found


def _here(path: Path) -> File | Folder | None:
    def file(one: Path) -> File:
        return File(one.name, str(one), lambda: one)

    if path.is_dir():
        return Folder(str(path), tuple(file(one) for one in path.iterdir() if one.is_file()))
    return file(path) if path.is_file() else None


def _in_store(source: str) -> File | Folder | None:
    if has_password(source):
        raise InputError(
            f"Expected an address without a password; found one in {without_password(source)}. Put it into the environment: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, FORECASTER_SQL_URL for a database (with --sql).",
            where=without_password(source),
        )
    scheme = source.split("://")[0]
    with _told(source):
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
            return Folder(source, tuple(_file(store, one["name"], source=source) for one in entries))
        return _file(store, path, source=None) if store.exists(path) else None


def _file(store: Any, path: str, *, source: str | None) -> File:
    name = path.rsplit("/", 1)[-1]
    told = store.unstrip_protocol(path) if source is None else f"{source.rstrip('/')}/{name}"
    return File(name, told, partial(_bytes, store, path, told))


def _bytes(store: Any, path: str, told: str) -> IO[bytes]:
    with _told(told):
        return io.BytesIO(store.cat_file(path))


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Where the exceptions of stores, which are of any kind, become ours; what they say may hold a key."""
    try:
        yield
    except (InputError, MissingPackage):
        raise
    except FileNotFoundError:
        raise SourceNotFound(f"Expected a file at {source}; found none. Check the address.", where=source) from None
    except ValueError as error:  # fsspec's, for a scheme that nobody knows
        raise SourceNotFound(
            f"Expected the address of a store that is known; {source}: {redacted(str(error))}. Correct it. A database is "
            "named in FORECASTER_SQL_URL and asked with --sql.",
            where=source,
        ) from None
    except Exception as error:  # of any kind: each store has its own
        raise SourceUnavailable(
            f"Expected an answer about {source}; the store says {type(error).__name__}: {redacted(str(error))}. Check the "
            "address, the keys in the environment and that the store is up, then try again.",
            where=source,
        ) from None
