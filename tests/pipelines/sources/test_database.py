"""Queries of real databases: they give the same panel as a file, and no error contains the database URL."""

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
from pipelines.redaction import SQL_URL_VARIABLE, read_secret, redact
from pipelines.sources import DataSource, read_panel
from tests.pipelines.conftest import make_noise_frame
from tests.pipelines.postgres_server import PASSWORD, QUOTED, running_postgres

pytestmark = pytest.mark.integration

QUERY = "SELECT meter AS unique_id, at AS ds, value AS y FROM readings"


@pytest.fixture(scope="module")
def postgres_readings() -> Iterator[str]:
    with running_postgres() as url:
        import psycopg

        with psycopg.connect(url) as connection:
            connection.execute(
                "CREATE TABLE readings (meter text, at timestamp, at_utc timestamptz, day date, value numeric(12, 6))"
            )
            with connection.cursor() as cursor:
                cursor.executemany(
                    "INSERT INTO readings VALUES (%s, %s, %s, %s, %s)",
                    [
                        (meter, at.to_pydatetime(), at.tz_localize("UTC").to_pydatetime(), at.date(), round(y, 6))
                        for meter, at, y in make_noise_frame(2, steps=48).itertuples(index=False)
                    ],
                )
        yield url


@pytest.fixture
def sqlite_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "readings.db"
    frame = make_noise_frame(2, steps=48).rename(columns={"unique_id": "meter", "ds": "at", "y": "value"})
    frame["at"] = frame["at"].dt.strftime("%Y-%m-%d %H:%M:%S")
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE readings (meter TEXT, at TEXT, value REAL)")
        connection.executemany("INSERT INTO readings VALUES (?, ?, ?)", frame.itertuples(index=False))
    connection.close()
    monkeypatch.setenv(SQL_URL_VARIABLE, f"sqlite:///{path}")
    return path


def test_a_sqlite_query_gives_the_same_panel_as_a_file(sqlite_readings: Path, tmp_path: Path) -> None:
    make_noise_frame(2, steps=48).to_csv(tmp_path / "a.csv", index=False)
    data = DataSource(QUERY, is_query=True)
    assert data.name == "query"
    assert read_panel(data).digest == read_panel(DataSource(str(tmp_path / "a.csv"))).digest
    panel = read_panel(
        data._replace(source=f"{QUERY} WHERE meter LIKE '%_1' AND at > '2026-01-01 09:59:00'", cutoff="2026-01-02")
    )
    assert [series.id for series in panel.series] == ["meter_1"]
    assert len(panel.series[0]) == 15


def test_sqlite_is_read_only(sqlite_readings: Path) -> None:
    with pytest.raises(InputError, match="--sql"):
        read_panel(DataSource("DELETE FROM readings", is_query=True))
    assert len(read_panel(DataSource(QUERY, is_query=True)).series) == 2


@pytest.mark.parametrize(
    ("query", "kind"), [("SELECT nothing FROM readings", InputError), ("SELEC 1", InputError), ("", InputError)]
)
def test_an_invalid_query_is_an_input_error(query: str, kind: type[InputError], sqlite_readings: Path) -> None:
    with pytest.raises(kind, match="--sql"):
        read_panel(DataSource(query, is_query=True))


def test_a_missing_database_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SQL_URL_VARIABLE, f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(InputError, match=r"found none at .*none\.db"):
        read_panel(DataSource(QUERY, is_query=True))
    assert list(tmp_path.iterdir()) == []


def test_the_error_for_a_missing_address_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SQL_URL_VARIABLE, raising=False)
    with pytest.raises(InputError, match=SQL_URL_VARIABLE):
        read_panel(DataSource(QUERY, is_query=True))
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(MissingPackage, match=r"recurrent-forecaster\[sources\]"):
        read_panel(DataSource(QUERY, is_query=True))


@pytest.mark.parametrize("column", ["at", "at_utc"])
def test_a_postgresql_query_gives_the_same_panel_as_a_file(
    column: str, postgres_readings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SQL_URL_VARIABLE, postgres_readings)
    panel = read_panel(
        DataSource(f"SELECT meter AS unique_id, {column} AS ds, value AS y FROM readings", is_query=True)
    )
    assert panel.freq == "h"
    assert [series.id for series in panel.series] == ["meter_0", "meter_1"]
    assert (panel.series[0].timestamps.tz is not None) == (column == "at_utc")  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        np.concatenate([series.y for series in panel.series]), make_noise_frame(2, steps=48)["y"], atol=1e-6
    )


def test_postgresql_queries_are_not_parameterised_and_are_read_only(
    postgres_readings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SQL_URL_VARIABLE, postgres_readings)
    query = (
        "SELECT meter AS unique_id, day::date AS ds, sum(value) AS y FROM readings "
        "WHERE meter LIKE '%_1' AND ':x' <> '%s' GROUP BY 1, 2"
    )
    assert len(read_panel(DataSource(query, freq="D", is_query=True)).series[0]) == 2
    with pytest.raises(InputError, match="read-only"):
        read_panel(DataSource("DELETE FROM readings RETURNING meter AS unique_id, at AS ds, value AS y", is_query=True))
    assert len(read_panel(DataSource(QUERY, is_query=True)).series) == 2


@pytest.mark.parametrize("fault", ["password", "user", "port", "address", "driver", "query"])
def test_no_error_contains_the_address(
    fault: str, postgres_readings: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = {
        "password": postgres_readings.replace(QUOTED, f"{QUOTED}-no"),
        "user": postgres_readings.replace("reader:", "other:"),
        "port": postgres_readings.rpartition(":")[0] + ":1/postgres",
        "address": postgres_readings.replace("/postgres", " :x/").replace("127.0.0.1", "[bad"),
        "driver": postgres_readings.replace("postgresql:", "postgresql+psycopg2:"),
        "query": postgres_readings,
    }[fault]
    monkeypatch.setenv(SQL_URL_VARIABLE, url)
    error_classes = {
        "password": SourceUnavailable,
        "user": SourceUnavailable,
        "port": SourceUnavailable,
        "driver": MissingPackage,
    }
    with caplog.at_level(logging.DEBUG), pytest.raises(error_classes.get(fault, InputError)) as raised:
        read_panel(DataSource("SELECT 1/0", is_query=True))
    text = "".join(traceback.format_exception(raised.value)) + str(raised.value.where) + caplog.text
    for secret in (PASSWORD, QUOTED, "planted"):
        assert secret not in text


def test_a_secret_is_redacted_in_all_its_spellings() -> None:
    environ = {SQL_URL_VARIABLE: f"postgresql://u:{QUOTED}@h/db", "AWS_SECRET_ACCESS_KEY": "abcdef", "PGPASSWORD": "no"}
    text = f"{environ[SQL_URL_VARIABLE]} and {PASSWORD} and {QUOTED} and abcdef, no http://x:y1y1@z/ left"
    assert redact(text, environ) == "*** and *** and *** and ***, no http://z/ left"
    assert "planted" not in repr(read_secret(SQL_URL_VARIABLE, environ))
    assert read_secret("NONE", environ) is None
