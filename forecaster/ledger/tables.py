"""The tables of the ledger for SQLite and PostgreSQL, and the database engine.

A change of the tables needs a new version and a step of migration to it: see `migrations.py`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import URL

LEDGER_SCHEMA_VERSION = 1
_LOCK_NUMBER = 0x666F7265  # PostgreSQL advisory lock of all that create or migrate the tables
_BUSY_PAUSE_S = 0.01

metadata = MetaData()

facts = Table(
    "ledger_facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
forecasts = Table(
    "ledger_forecasts",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("made_at", Float(53), nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("key", String(32), nullable=False),
    Column("id", Text),
    Column("part", Text),
    Column("origin", BigInteger, nullable=False),
    Column("ending", BigInteger, nullable=False),
    Column("horizon", Integer, nullable=False),
    Column("scale", Float(53)),
    Column("stamps", Text, nullable=False),
    Column("body", Text, nullable=False),
    UniqueConstraint("digest", "key", "origin", name="ledger_forecasts_once"),
)
actuals = Table(
    "ledger_actuals",
    metadata,
    Column("key", String(32), primary_key=True),
    Column("stamp", BigInteger, primary_key=True, autoincrement=False),
    Column("y", Float(53), nullable=False),
    Column("told_at", Float(53), nullable=False),
)
drifts = Table(
    "ledger_drifts",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("state", Text, nullable=False),
    Column("made_at", Float(53), nullable=False),
)
Index("ledger_forecasts_by_series", forecasts.c.key, forecasts.c.ending)
Index("ledger_forecasts_by_time", forecasts.c.made_at)
Index("ledger_actuals_by_time", actuals.c.told_at)


def create_database_engine(url: URL, *, timeout_s: float) -> Engine:
    """Returns an engine whose transactions wait at most `timeout_s` for a lock.

    A SQLite file is created readable by its owner alone, and uses a write-ahead log (WAL), so that readers and one writer do not
    wait for each other.
    """
    if url.get_backend_name() != "sqlite":
        connect_args = {
            "connect_timeout": max(1, round(timeout_s)),
            "options": f"-c lock_timeout={round(timeout_s * 1000)}",
        }
        return create_engine(url, connect_args=connect_args, pool_pre_ping=True, pool_size=2)
    if url.database and url.database != ":memory:":
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    engine = create_engine(url, connect_args={"timeout": timeout_s})
    event.listen(engine, "connect", partial(_on_connect, timeout_s=timeout_s))
    event.listen(engine, "begin", _on_begin)
    return engine


@contextmanager
def begin_exclusive(engine: Engine) -> Iterator[Connection]:
    """Begins a transaction that changes the tables; only one process at a time has one."""
    with engine.execution_options(writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
        yield connection


def _on_connect(connection: Any, _: object, *, timeout_s: float) -> None:
    connection.isolation_level = None  # transactions are begun in _on_begin, not by the rules of sqlite3
    _use_write_ahead_log(connection, timeout_s)
    connection.execute("PRAGMA synchronous=NORMAL")


def _use_write_ahead_log(connection: Any, timeout_s: float) -> None:
    """Waits while another connection does the same to a new file, which SQLite itself rejects without waiting."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_PAUSE_S)
        else:
            return


def _on_begin(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail immediately, without waiting, if another wrote in between.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
