"""The versions of the ledger: older ones are migrated step by step, and any that does not match its version is rejected."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Engine, MetaData, Text, create_engine, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from forecaster.errors import LedgerError
from forecaster.ledger import migrations, tables
from forecaster.ledger.migrations import LedgerSchema
from forecaster.ledger.records import ForecastFilter, ObservedSeries
from forecaster.ledger.store import Ledger
from tests.forecaster.ledger.layout_of_version_1 import VERSION_1_SQL
from tests.forecaster.ledger.test_ledger import make_forecast_record

SALT = "ab" * 32
CONTENT = (
    f"INSERT INTO ledger_facts VALUES ('schema', '1'), ('salt', '{SALT}')",
    "INSERT INTO ledger_forecasts (made_at, name, version, digest, key, origin, ending, horizon, stamps, body) VALUES "
    "(100, 'sales', '3', 'd', 'k', 10, 12, 2, '[11,12]', '{\"mean\":[5.0,5.0],\"quantiles\":{},\"units\":null,\"shifts\":{}}')",
    "INSERT INTO ledger_actuals VALUES ('k', 11, 6.0, 200)",
)


def execute_all(engine: Engine, statements: Sequence[str]) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def query_rows(address: str, query: str) -> list[tuple[object, ...]]:
    engine = create_engine(address)
    with engine.begin() as connection:
        rows = [tuple(row) for row in connection.exec_driver_sql(query)]
    engine.dispose()
    return rows


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    server = create_engine(request.getfixturevalue("postgres"), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE migrations"))
        yield server.url.set(database="migrations").render_as_string(hide_password=False)
        connection.execute(text("DROP DATABASE migrations WITH (FORCE)"))
    server.dispose()


@pytest.fixture
def version_1(empty_database: str) -> str:
    """The address of a ledger as version 0.1 wrote it, with a forecast and an actual."""
    write_ledger(empty_database, [*VERSION_1_SQL, *CONTENT])
    return empty_database


def write_ledger(address: str, statements: Sequence[str]) -> None:
    engine = create_engine(address)
    if engine.dialect.name == "postgresql":
        statements = [
            statement.replace("number INTEGER", "number BIGSERIAL").replace("FLOAT", "FLOAT(53)")
            for statement in statements
        ]
    execute_all(engine, statements)
    engine.dispose()


def add_note(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE ledger_forecasts ADD COLUMN note TEXT"))


def fill_note(connection: Connection) -> None:
    connection.execute(text("UPDATE ledger_forecasts SET note = name || ' ' || version"))


def make_schema(*steps: migrations.Step) -> LedgerSchema:
    """Returns a later schema, in which forecasts have a note, and the steps to it from version 1."""
    metadata = MetaData()
    for table in tables.metadata.sorted_tables:
        table.to_metadata(metadata)
    metadata.tables["ledger_forecasts"].append_column(Column("note", Text))
    return LedgerSchema(1 + len(steps), metadata, dict(enumerate(steps, 1)))


def prepare(address: str, schema: LedgerSchema) -> dict[str, str]:
    engine = tables.create_database_engine(make_url(address), timeout_s=5.0)
    try:
        return migrations.prepare_tables(engine, address=address, schema=schema)
    finally:
        engine.dispose()


def layout_of(address: str) -> dict[str, object]:
    """Returns the columns and indexes of a database."""
    engine = create_engine(address)
    inspector = inspect(engine)
    layout = {
        name: (
            sorted((column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)),
            sorted(str(index["name"]) for index in inspector.get_indexes(name)),
            inspector.get_pk_constraint(name)["constrained_columns"],
            [constraint["column_names"] for constraint in inspector.get_unique_constraints(name)],
        )
        for name in sorted(inspector.get_table_names())
    }
    engine.dispose()
    return layout


def test_every_version_before_the_current_one_has_a_step() -> None:
    assert set(migrations.STEPS) == set(range(1, tables.LEDGER_SCHEMA_VERSION))


def test_a_ledger_of_version_1_gets_the_layout_of_a_new_one_and_keeps_its_content(
    version_1: str, tmp_path: Path
) -> None:
    ledger = Ledger(version_1)
    assert ledger.salt == bytes.fromhex(SALT)
    assert ledger.span(ForecastFilter()).forecasts == 1
    assert ledger.record([make_forecast_record("k2")]) == 1
    assert ledger.observe([ObservedSeries("k", [12], [7.0])], now=1.0)[0].scored == 1
    ledger.close()
    assert query_rows(version_1, "SELECT y FROM ledger_actuals ORDER BY stamp") == [(6.0,), (7.0,)]
    assert query_rows(version_1, "SELECT value FROM ledger_facts WHERE name = 'schema'") == [
        (str(tables.LEDGER_SCHEMA_VERSION),)
    ]
    if version_1.startswith("sqlite"):
        Ledger(f"sqlite:///{tmp_path}/new.db").close()
        assert layout_of(version_1) == layout_of(f"sqlite:///{tmp_path}/new.db"), (
            "tables.py changed: raise LEDGER_SCHEMA_VERSION and add a step to migrations.STEPS"
        )


def test_a_ledger_is_migrated_step_by_step_and_once(version_1: str) -> None:
    calls: list[str] = []

    def counted(step: migrations.Step) -> migrations.Step:
        def run(connection: Connection) -> None:
            calls.append(step.__name__)
            step(connection)

        return run

    schema = make_schema(counted(add_note), counted(fill_note))
    for _ in range(2):
        facts = prepare(version_1, schema)
        assert facts == {"schema": "3", "salt": SALT}
    assert calls == ["add_note", "fill_note"]
    assert query_rows(version_1, "SELECT made_at, note FROM ledger_forecasts") == [(100.0, "sales 3")]
    with pytest.raises(LedgerError, match=r"Expected a ledger of schema 1 at .*; it has schema 3\. Use the version"):
        Ledger(version_1)


def test_a_ledger_of_an_intermediate_version_runs_only_the_later_steps(version_1: str) -> None:
    prepare(version_1, make_schema(add_note))
    assert prepare(version_1, make_schema(add_note, fill_note))["schema"] == "3"
    assert query_rows(version_1, "SELECT note FROM ledger_forecasts") == [("sales 3",)]


def test_a_step_that_fails_leaves_the_ledger_as_it_was(version_1: str) -> None:
    def fail(connection: Connection) -> None:
        connection.execute(text("DELETE FROM ledger_actuals"))
        connection.execute(text("SELECT nothing FROM ledger_actuals"))

    before = layout_of(version_1)
    with pytest.raises(SQLAlchemyError):
        prepare(version_1, make_schema(add_note, fail))
    assert layout_of(version_1) == before
    assert query_rows(version_1, "SELECT y FROM ledger_actuals") == [(6.0,)]
    assert prepare(version_1, make_schema(add_note, fill_note))["schema"] == "3"


def test_a_step_without_its_column_is_rejected(version_1: str) -> None:
    before = layout_of(version_1)
    with pytest.raises(LedgerError, match=r"lacks the column ledger_forecasts\.note"):
        prepare(version_1, make_schema(lambda _: None))
    assert layout_of(version_1) == before


def test_processes_that_open_a_ledger_at_once_migrate_it_once(version_1: str) -> None:
    barrier, errors, salts = threading.Barrier(4), [], set[str]()

    def open_ledger() -> None:
        barrier.wait()
        try:
            salts.add(prepare(version_1, make_schema(add_note, fill_note))["salt"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_ledger) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []  # a second ALTER TABLE would fail
    assert salts == {SALT}


def test_a_connection_waits_for_one_that_still_reads_without_a_write_ahead_log(tmp_path: Path) -> None:
    """SQLite itself rejects the change of the journal at once, whatever its timeout is."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as reader:
        reader.execute("CREATE TABLE other (number INTEGER)")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM other").fetchall()
        with pytest.raises(LedgerError, match="locked"):
            Ledger(f"sqlite:///{path}", timeout_s=0.05)
        timer = threading.Timer(0.1, reader.rollback)
        timer.start()
        Ledger(f"sqlite:///{path}").close()
        timer.join()


def without(column: str) -> Callable[[str], str]:
    """Removes a column from CREATE TABLE, and the index on it."""
    return lambda statement: (
        "SELECT 1"
        if statement.startswith("CREATE INDEX") and f"({column})" in statement
        else "\n".join(line for line in statement.split("\n") if not line.strip().startswith(f"{column} "))
    )


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (without("part"), r"lacks the column ledger_forecasts\.part"),
        (without("told_at"), r"lacks the column ledger_actuals\.told_at"),
        (without("made_at"), r"lacks the column ledger_drifts\.made_at, lacks the column ledger_forecasts\.made_at"),
        (without("value"), r"lacks the column ledger_facts\.value"),
        (
            lambda sql: sql.replace("\tpart TEXT", "\tpart TEXT, group_name TEXT"),
            r"unknown column ledger_forecasts\.group_name",
        ),
        (lambda sql: "SELECT 1" if "TABLE ledger_drifts" in sql else sql, "lacks the table ledger_drifts"),
        (lambda sql: "SELECT 1" if "TABLE ledger_facts" in sql else sql, "lacks the table ledger_facts"),
    ],
)
def test_a_ledger_whose_columns_do_not_match_its_version_is_rejected(
    tmp_path: Path, change: Callable[[str], str], difference: str
) -> None:
    address = f"sqlite:///{tmp_path}/ledger.db"
    write_ledger(address, [change(statement) for statement in VERSION_1_SQL])
    if "ledger_facts" not in difference:
        write_ledger(address, CONTENT[:1])
    with pytest.raises(LedgerError) as raised:
        Ledger(address)
    message = str(raised.value)
    assert raised.match(rf"Expected the columns of schema 1 in the ledger at .*ledger\.db; it .*{difference}")
    assert message.rstrip().endswith("Restore the database from a backup, or use another ledger.")


@pytest.mark.parametrize("version", ["2", "0", "-1", "next", "9" * 100])
def test_a_ledger_of_another_version_is_rejected(tmp_path: Path, version: str) -> None:
    address = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(address).close()
    write_ledger(address, [f"UPDATE ledger_facts SET value = '{version}' WHERE name = 'schema'"])
    with pytest.raises(LedgerError, match=rf"Expected a ledger of schema 1 at .*; it has schema {version[:20]}\. Use"):
        Ledger(address)


def test_a_ledger_whose_creation_was_interrupted_is_completed(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/ledger.db"
    write_ledger(address, [statement for statement in VERSION_1_SQL if "INDEX" not in statement])
    ledger = Ledger(address)
    ledger.close()
    assert len(ledger.salt) == 32
    Ledger(f"sqlite:///{tmp_path}/new.db").close()
    assert layout_of(address) == layout_of(f"sqlite:///{tmp_path}/new.db")
