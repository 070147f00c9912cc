"""The versions of the ledger's tables: a new ledger gets the current one, an older one is migrated, any other is rejected.

A change of `tables.py` raises LEDGER_SCHEMA_VERSION by one, and adds to STEPS a function that brings a ledger of the version
before to it, in SQL for both databases. A released step is never changed, because it has to read what its version wrote.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sqlalchemy import Connection, Engine, MetaData, Table, delete, insert, inspect, select
from sqlalchemy.schema import CreateIndex

from forecaster.errors import LedgerError
from forecaster.ledger import tables

Step = Callable[[Connection], None]
STEPS: Mapping[
    int, Step
] = {}  # by the version that the step starts from; none yet, because version 1 is the current one
_FIRST_VERSION = 1

log = logging.getLogger(__name__)


class LedgerSchema(NamedTuple):
    """The tables of one version, and the steps to it from every earlier one."""

    version: int
    metadata: MetaData
    steps: Mapping[int, Step]


CURRENT_SCHEMA = LedgerSchema(tables.LEDGER_SCHEMA_VERSION, tables.metadata, STEPS)


def prepare_tables(engine: Engine, *, address: str, schema: LedgerSchema = CURRENT_SCHEMA) -> dict[str, str]:
    """Creates or migrates the tables of a ledger; returns its facts.

    All of it is one transaction under the lock of the database, so several processes may open a ledger at once, and a step
    that fails leaves the ledger as it was. Raises LedgerError if the ledger has a newer version, or columns that do not match
    its version.
    """
    with tables.begin_exclusive(engine) as connection:
        present = schema.metadata.tables.keys() & set(inspect(connection).get_table_names())
        if present:
            _validate_columns(connection, [tables.facts], version=_FIRST_VERSION, address=address)
            version = _read_version(connection, schema, address)
            for number in range(version, schema.version):
                schema.steps[number](connection)
                log.info("the ledger at %s was migrated from schema %s to %s", address, number, number + 1)
            _validate_columns(connection, schema.metadata.sorted_tables, version=schema.version, address=address)
            _create_missing_indexes(connection, schema.metadata)
        else:
            schema.metadata.create_all(connection, checkfirst=False)
        return _complete_facts(connection, schema.version)


def _read_version(connection: Connection, schema: LedgerSchema, address: str) -> int:
    version = _read_facts(connection).get("schema")
    if version is None:  # version 0.1 of forecaster was interrupted between the tables and this fact
        return _FIRST_VERSION
    if not version.isdecimal() or not _FIRST_VERSION <= int(version) <= schema.version:
        versions = f"{_FIRST_VERSION}" if schema.version == _FIRST_VERSION else f"{_FIRST_VERSION} to {schema.version}"
        raise LedgerError(
            f"Expected a ledger of schema {versions} at {address}; it has schema {version[:20]}. "
            "Use the version of forecaster that wrote it, or another ledger.",
            where="ledger",
        )
    return int(version)


def _validate_columns(connection: Connection, expected_tables: list[Table], *, version: int, address: str) -> None:
    """Raises LedgerError unless the tables have exactly the expected columns."""
    inspector = inspect(connection)
    present, differences = set(inspector.get_table_names()), []
    for table in expected_tables:
        if table.name not in present:
            differences.append(f"lacks the table {table.name}")
            continue
        found, expected = {column["name"] for column in inspector.get_columns(table.name)}, set(table.columns.keys())
        differences += [f"lacks the column {table.name}.{name}" for name in sorted(expected - found)]
        differences += [f"has the unknown column {table.name}.{name}" for name in sorted(found - expected)]
    if differences:
        raise LedgerError(
            f"Expected the columns of schema {version} in the ledger at {address}; it {', '.join(differences)}. "
            "Restore the database from a backup, or use another ledger.",
            where="ledger",
        )


def _create_missing_indexes(connection: Connection, metadata: MetaData) -> None:
    inspector = inspect(connection)
    for table in metadata.sorted_tables:
        present = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            if index.name not in present:
                connection.execute(CreateIndex(index))


def _complete_facts(connection: Connection, version: int) -> dict[str, str]:
    """Writes the version, and the salt of a new ledger; returns all facts."""
    facts = _read_facts(connection)
    complete = {"salt": secrets.token_hex(32), **facts, "schema": str(version)}
    changed = [{"name": name, "value": value} for name, value in complete.items() if facts.get(name) != value]
    if changed:
        connection.execute(delete(tables.facts).where(tables.facts.c.name.in_([fact["name"] for fact in changed])))
        connection.execute(insert(tables.facts), changed)
    return complete


def _read_facts(connection: Connection) -> dict[str, str]:
    rows = connection.execute(select(tables.facts.c.name, tables.facts.c.value))
    return {row.name: row.value for row in rows}
