"""Queries of real databases: the same panel as from a file, and an address that is never told."""

from __future__ import annotations

import logging
import sqlite3
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from forecaster.errors import InputError, MissingPackage, SourceUnavailable
from pipelines.redaction import SQL_URL, redacted, secret, without_password
from pipelines.sources import Data, read
from tests.pipelines.conftest import noise
from tests.pipelines.postgres_server import PASSWORD, QUOTED, running

QUERY = "SELECT meter AS unique_id, at AS ds, value AS y FROM readings"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running() as address:
        import psycopg

        with psycopg.connect(address) as connection:
            connection.execute(
                "CREATE TABLE readings (meter text, at timestamp, at_utc timestamptz, day date, value numeric(12, 6))"
            )
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO readings VALUES (%s, %s, %s, %s, %s)",
                    [
                        (one, at.to_pydatetime(), at.tz_localize("UTC").to_pydatetime(), at.date(), round(y, 6))
                        for one, at, y in noise(2, steps=48).itertuples(index=False)
                    ],
                )
        yield address


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "readings.db"
    frame = noise(2, steps=48).rename(columns={"unique_id": "meter", "ds": "at", "y": "value"})
    frame["at"] = frame["at"].dt.strftime("%Y-%m-%d %H:%M:%S")
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE readings (meter TEXT, at TEXT, value REAL)")
        connection.executemany("INSERT INTO readings VALUES (?, ?, ?)", frame.itertuples(index=False))
    connection.close()
    monkeypatch.setenv(SQL_URL, f"sqlite:///{path}")
    return path


def test_a_query_of_sqlite_is_the_same_panel_as_a_file(sqlite: Path, tmp_path: Path) -> None:
    noise(2, steps=48).to_csv(tmp_path / "a.csv", index=False)
    data = Data(QUERY, is_query=True)
    assert data.name == "query"
    assert read(data).digest() == read(Data(str(tmp_path / "a.csv"))).digest()
    some = read(
        data._replace(source=f"{QUERY} WHERE meter LIKE '%_1' AND at > '2026-01-01 09:59:00'", cutoff="2026-01-02")
    )
    assert [one.id for one in some.series] == ["meter_1"]
    assert len(some.series[0]) == 15


def test_sqlite_is_asked_and_never_written(sqlite: Path) -> None:
    with pytest.raises(InputError, match="--sql"):
        read(Data("DELETE FROM readings", is_query=True))
    assert len(read(Data(QUERY, is_query=True)).series) == 2


@pytest.mark.parametrize(
    ("query", "kind"), [("SELECT nothing FROM readings", InputError), ("SELEC 1", InputError), ("", InputError)]
)
def test_a_query_that_is_wrong_is_wrong_input(query: str, kind: type[InputError], sqlite: Path) -> None:
    with pytest.raises(kind, match="--sql"):
        read(Data(query, is_query=True))


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SQL_URL, f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(InputError, match=r"found none at .*none\.db"):
        read(Data(QUERY, is_query=True))
    assert list(tmp_path.iterdir()) == []


def test_without_an_address_it_is_said_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SQL_URL, raising=False)
    with pytest.raises(InputError, match=SQL_URL):
        read(Data(QUERY, is_query=True))
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(MissingPackage, match=r"forecaster\[sources\]"):
        read(Data(QUERY, is_query=True))


@pytest.mark.parametrize("column", ["at", "at_utc"])
def test_a_query_of_postgresql_is_the_same_panel_as_a_file(
    column: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SQL_URL, postgres)
    panel = read(Data(f"SELECT meter AS unique_id, {column} AS ds, value AS y FROM readings", is_query=True))
    assert panel.freq == "h"
    assert [one.id for one in panel.series] == ["meter_0", "meter_1"]
    assert (panel.series[0].stamps.tz is not None) == (column == "at_utc")  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.concatenate([one.y for one in panel.series]), noise(2, steps=48)["y"], atol=1e-6)


def test_postgresql_is_asked_with_what_looks_like_a_parameter_and_never_written(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SQL_URL, postgres)
    grouped = (
        "SELECT meter AS unique_id, day::date AS ds, sum(value) AS y FROM readings "
        "WHERE meter LIKE '%_1' AND ':x' <> '%s' GROUP BY 1, 2"
    )
    assert len(read(Data(grouped, freq="D", is_query=True)).series[0]) == 2
    with pytest.raises(InputError, match="read-only"):
        read(Data("DELETE FROM readings RETURNING meter AS unique_id, at AS ds, value AS y", is_query=True))
    assert len(read(Data(QUERY, is_query=True)).series) == 2


@pytest.mark.parametrize("what", ["password", "user", "port", "address", "driver", "query"])
def test_no_error_tells_the_address(
    what: str, postgres: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {
        "password": postgres.replace(QUOTED, f"{QUOTED}-no"),
        "user": postgres.replace("reader:", "other:"),
        "port": postgres.rpartition(":")[0] + ":1/postgres",
        "address": postgres.replace("/postgres", " :x/").replace("127.0.0.1", "[bad"),
        "driver": postgres.replace("postgresql:", "postgresql+psycopg2:"),
        "query": postgres,
    }[what]
    monkeypatch.setenv(SQL_URL, wrong)
    kind = {
        "password": SourceUnavailable,
        "user": SourceUnavailable,
        "port": SourceUnavailable,
        "driver": MissingPackage,
    }
    with caplog.at_level(logging.DEBUG), pytest.raises(kind.get(what, InputError)) as raised:
        read(Data("SELECT 1/0", is_query=True))
    told = "".join(traceback.format_exception(raised.value)) + str(raised.value.where) + caplog.text
    for planted in (PASSWORD, QUOTED, "planted"):
        assert planted not in told


def test_a_secret_is_struck_out_in_all_its_spellings() -> None:
    environ = {SQL_URL: f"postgresql://u:{QUOTED}@h/db", "AWS_SECRET_ACCESS_KEY": "abcdef", "PGPASSWORD": "no"}
    text = f"{environ[SQL_URL]} and {PASSWORD} and {QUOTED} and abcdef, no http://x:y1y1@z/ left"
    assert redacted(text, environ) == "*** and *** and *** and ***, no http://x:***@z/ left"
    assert "planted" not in repr(secret(SQL_URL, environ))
    assert secret("NONE", environ) is None
    assert without_password("http://h:notaport/") == "http://h:notaport/"
