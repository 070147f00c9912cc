"""A folder of state as one archive that names no machine: MLflow and the schedule keep absolute paths.

In the archive every such path begins with PLACEHOLDER, which need not exist. `unpack` puts the folder anywhere and rewrites them.
"""

from __future__ import annotations

import re
import sqlite3
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

PLACEHOLDER = "/srv/forecaster"
_STORE = "state/mlflow.db"  # the one database that holds paths
_TEXTS = ("state/mlruns/**/MLmodel", "state/schedule/jobs/*.json", "state/schedule/*.log")  # and these files
_MTIME = 1_700_000_000  # of all members, so that an archive depends on its content alone


def unpack(archive: Path, into: Path) -> Path:
    """Extracts an archive into a folder, which must not exist yet, and makes its paths those of this folder; returns it."""
    into.mkdir(parents=True)
    with tarfile.open(archive) as file:
        file.extractall(into, filter="data")
    relocate(into, PLACEHOLDER, str(into))
    return into


def relocate(folder: Path, before: str, after: str) -> None:
    """Replaces the beginning of all paths that a folder of state records.

    These are, in MLflow's database, the artefact locations of experiments, runs, logged models and registered versions; in
    each logged model the `artifact_path` of its MLmodel file; in the schedule the working folder of each job, and what runs
    printed. Nothing that is sealed or signed holds a path: neither bundles nor the audit log are touched.
    """
    with closing(sqlite3.connect(folder / _STORE)) as connection, connection:
        for table, column in _text_columns(connection):
            # The names are those of the database's own schema.
            connection.execute(
                f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?) > 0',
                (before, after, before),
            )
    for pattern in _TEXTS:
        for path in folder.glob(pattern):
            path.write_text(path.read_text().replace(before, after))


def pack(folder: Path, archive: Path) -> None:
    """Writes a folder whose paths begin with PLACEHOLDER as an archive; raises ValueError where a path of a machine is left.

    LZMA and not gzip: a bundle is in the folder several times (as trained, registered and served), which LZMA notices.
    """
    for database in sorted(folder.rglob("*.db")):
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")  # everything is in the one file
            connection.execute("VACUUM")
    check(folder)
    with tarfile.open(archive, "w:xz", format=tarfile.PAX_FORMAT, preset=9) as file:
        for path in sorted(folder.rglob("*")):
            file.add(path, arcname=str(path.relative_to(folder)), recursive=False, filter=_plain)


def check(folder: Path, *, forbidden: Sequence[str] = ()) -> None:
    """Raises ValueError where a file holds an absolute path of a machine, or one of the forbidden texts.

    Databases are searched too: their texts are stored as they are.
    """
    paths = rb"(?<![\w.:/~-])(?:file://)?/(?:tmp|work|home|root|var|Users|private|opt|mnt|data)/[\w.-]+"
    told = [re.escape(text).encode() for text in forbidden]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found = re.search(b"|".join([paths, *told]), path.read_bytes())
            if found is not None:
                raise ValueError(f"{path.relative_to(folder)} holds {found.group()!r}")


def _text_columns(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for _, column, kind, *_ in connection.execute(f'PRAGMA table_info("{table}")').fetchall():
            if re.search("CHAR|TEXT|CLOB|JSON", kind.upper()):
                yield table, column


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.gid, member.uname, member.gname = _MTIME, 0, 0, "", ""
    return member
