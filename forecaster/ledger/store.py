"""The ledger as a database: it stores forecasts and actuals, each once, and returns them in pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from forecaster.errors import LedgerError, MissingPackage
from forecaster.ledger.records import (
    ForecastFilter,
    ForecastRecord,
    ForecastSpan,
    ModelIdentity,
    ObservationResult,
    ObservedSeries,
    encode_body,
)
from forecaster.storage.addresses import redact_addresses

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

DATABASE_BACKENDS = ("sqlite", "postgresql")
LOCK_TIMEOUT_S = 5.0
BATCH_ROWS = 500  # forecasts read, and series looked up, in one query


class Ledger:
    """The ledger at one database URL; threads may share it.

    Every method raises LedgerError when the database cannot be reached, is locked for too long, or rejects the statement.
    """

    def __init__(self, url: str, *, timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Opens a ledger: creates it if it does not exist, and migrates it if an earlier version of forecaster wrote it.

        Args:
            url: In the form of SQLAlchemy: sqlite:////var/lib/ledger.db, postgresql+psycopg://user:password@host/name.
            timeout_s: How long to wait for a locked database.
        Raises:
            LedgerError: the URL is invalid, the database does not respond, or the ledger's version or columns are not those of
                this version of forecaster, or of an earlier one.
            MissingPackage: SQLAlchemy, or the driver of the database, is not installed.
        """
        address = parse_database_url(url)
        from forecaster.ledger import migrations, tables

        self.address = redact_addresses(address.render_as_string(hide_password=True))
        self._tables = tables
        with self._translate_errors():
            try:
                self._engine = tables.create_database_engine(address, timeout_s=timeout_s)
            except ModuleNotFoundError as error:
                raise MissingPackage(
                    f"A ledger in {address.get_backend_name()} needs the package {error.name!r}, which is not installed. "
                    "Install it with: pip install 'recurrent-forecaster[postgres]'.",
                    where="ledger",
                ) from error
            try:
                facts = migrations.prepare_tables(self._engine, address=self.address)
            except BaseException:
                self._engine.dispose()  # a caller that tries again would leave a connection open each time
                raise
        self._write_engine = self._engine.execution_options(writes=True)
        self.salt = bytes.fromhex(facts["salt"])

    def close(self) -> None:
        """Closes the database connections."""
        self._engine.dispose()

    def record(self, records: Sequence[ForecastRecord]) -> int:
        """Stores forecasts; returns how many are new, or have a longer horizon than the stored one.

        There is one forecast per model, series and origin: the first that was served, unless a later one has a longer horizon.
        """
        table = self._tables.forecasts
        statement = self._insert_statement(table)
        statement = statement.on_conflict_do_update(
            index_elements=["digest", "key", "origin"],
            set_={name: statement.excluded[name] for name in ("ending", "horizon", "scale", "stamps", "body")},
            where=statement.excluded.horizon > table.c.horizon,
        )
        rows = [_to_row(record) for record in records]
        if not rows:
            return 0
        with self._translate_errors(), self._write_engine.begin() as connection:
            result = connection.execute(statement, rows, execution_options={"preserve_rowcount": True})
            return int(result.rowcount)

    def observe(
        self, observations: Sequence[ObservedSeries], *, now: float, check_deadline: Callable[[], object] = lambda: None
    ) -> list[ObservationResult]:
        """Stores actuals, one value per series and timestamp: an equal value changes nothing, a different one replaces it.

        Args:
            observations: In the order they arrived; of two different values for one timestamp the later counts.
            now: The current time, in seconds since 1970.
            check_deadline: Called regularly once all values are stored; it may raise.
        """
        table = self._tables.actuals
        statement = self._insert_statement(table)
        statement = statement.on_conflict_do_update(
            index_elements=["key", "stamp"], set_={"y": statement.excluded.y, "told_at": statement.excluded.told_at}
        )
        with self._translate_errors(), self._write_engine.begin() as connection:
            stored_values = self._stored_values(connection, observations)
            changes: dict[tuple[str, int], float] = {}
            counts: list[tuple[int, int]] = []
            for item in observations:
                stored = corrected = 0
                for timestamp, value in zip(item.timestamps, item.values, strict=True):
                    previous = stored_values.get((item.key, timestamp))
                    if previous != value:
                        stored, corrected = stored + (previous is None), corrected + (previous is not None)
                        stored_values[item.key, timestamp] = changes[item.key, timestamp] = value
                counts.append((stored, corrected))
            if changes:
                rows = [
                    {"key": key, "stamp": timestamp, "y": y, "told_at": now} for (key, timestamp), y in changes.items()
                ]
                connection.execute(statement, rows)
        forecasts = self._affected_forecasts(observations, check_deadline)
        return [
            ObservationResult(*count, *_count_scored(item, forecasts.get(item.key, ())))
            for item, count in zip(observations, counts, strict=True)
        ]

    def span(self, selection: ForecastFilter) -> ForecastSpan:
        """Returns the number of selected forecasts, and when the first and the last were made."""
        from sqlalchemy import func, select

        time = self._tables.forecasts.c.made_at
        with self._translate_errors(), self._engine.begin() as connection:
            count, first, last = connection.execute(
                select(func.count(), func.min(time), func.max(time)).where(*self._conditions(selection))
            ).one()
        return ForecastSpan(int(count), first, last)

    def models(self, selection: ForecastFilter) -> list[ModelIdentity]:
        """Returns the models with selected forecasts, the most recently used first."""
        from sqlalchemy import func, select

        table = self._tables.forecasts
        columns = (table.c.name, table.c.version, table.c.digest)
        with self._translate_errors(), self._engine.begin() as connection:
            rows = connection.execute(
                select(*columns)
                .where(*self._conditions(selection))
                .group_by(*columns)
                .order_by(func.max(table.c.made_at).desc())
            ).all()
        return [ModelIdentity(*row) for row in rows]

    def forecasts_with_actuals(
        self, selection: ForecastFilter
    ) -> Iterator[tuple[Sequence[Any], Mapping[tuple[str, int], float]]]:
        """Yields batches of forecasts that have actuals, in order of series and origin, with these actuals.

        Rows have `key, part, made_at, origin, scale, stamps, body, ending, number`; actuals are by series and timestamp.
        """
        from sqlalchemy import and_, exists, select, tuple_

        table, actuals = self._tables.forecasts, self._tables.actuals
        columns = (
            table.c.key,
            table.c.part,
            table.c.made_at,
            table.c.origin,
            table.c.scale,
            table.c.stamps,
            table.c.body,
        )
        order = (table.c.key, table.c.origin, table.c.number)
        has_actuals = exists().where(
            actuals.c.key == table.c.key, actuals.c.stamp > table.c.origin, actuals.c.stamp <= table.c.ending
        )
        query = (
            select(*columns, table.c.ending, table.c.number)
            .where(*self._conditions(selection), has_actuals)
            .order_by(*order)
        )
        last: tuple[Any, ...] | None = None
        while True:
            page = query if last is None else query.where(tuple_(*order) > last)
            with self._translate_errors(), self._engine.begin() as connection:
                rows = connection.execute(page.limit(BATCH_ROWS)).all()
                if not rows:
                    return
                within = and_(
                    actuals.c.key.between(rows[0].key, rows[-1].key),
                    actuals.c.stamp.between(min(row.origin for row in rows), max(row.ending for row in rows)),
                )
                actual_rows = connection.execute(
                    select(actuals.c.key, actuals.c.stamp, actuals.c.y).where(within)
                ).all()
            last = (rows[-1].key, rows[-1].origin, rows[-1].number)
            yield rows, {(row.key, row.stamp): row.y for row in actual_rows}

    def latest_forecasts(self, selection: ForecastFilter, *, limit: int) -> Sequence[Any]:
        """Returns the latest forecasts, scored or not, latest first; rows as those of `forecasts_with_actuals`."""
        from sqlalchemy import select

        table = self._tables.forecasts
        columns = (
            table.c.key,
            table.c.part,
            table.c.made_at,
            table.c.origin,
            table.c.scale,
            table.c.stamps,
            table.c.body,
        )
        query = select(*columns).where(*self._conditions(selection)).order_by(table.c.made_at.desc()).limit(limit)
        with self._translate_errors(), self._engine.begin() as connection:
            return connection.execute(query).all()

    def save_adaptive_state_json(self, digest: str, state: str, *, now: float) -> None:
        """Stores the adaptive state of a model."""
        table = self._tables.drifts
        statement = self._insert_statement(table)
        statement = statement.on_conflict_do_update(
            index_elements=["digest"], set_={"state": statement.excluded.state, "made_at": statement.excluded.made_at}
        )
        with self._translate_errors(), self._write_engine.begin() as connection:
            connection.execute(statement, {"digest": digest, "state": state, "made_at": now})

    def load_adaptive_state_json(self, digest: str) -> str | None:
        """Returns the stored adaptive state of a model, if there is one."""
        from sqlalchemy import select

        table = self._tables.drifts
        with self._translate_errors(), self._engine.begin() as connection:
            return connection.execute(select(table.c.state).where(table.c.digest == digest)).scalar()

    def prune(self, *, before: float) -> int:
        """Deletes forecasts made, and actuals received, before a time; returns the number of deleted forecasts."""
        from sqlalchemy import delete

        table, actuals = self._tables.forecasts, self._tables.actuals
        with self._translate_errors(), self._write_engine.begin() as connection:
            num_deleted = connection.execute(delete(table).where(table.c.made_at < before)).rowcount
            connection.execute(delete(actuals).where(actuals.c.told_at < before))
        return int(num_deleted)

    def _insert_statement(self, table: Any) -> Any:
        """Returns an insert statement that supports ON CONFLICT."""
        if self._engine.dialect.name == "sqlite":
            from sqlalchemy.dialects import sqlite

            return sqlite.insert(table)
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)

    def _conditions(self, selection: ForecastFilter) -> list[ColumnElement[bool]]:
        table = self._tables.forecasts
        equal = [
            table.c[name] == value
            for name, value in selection._asdict().items()
            if name != "since" and value is not None
        ]
        return equal if selection.since is None else [*equal, table.c.made_at >= selection.since]

    def _stored_values(
        self, connection: Connection, observations: Sequence[ObservedSeries]
    ) -> dict[tuple[str, int], float]:
        from sqlalchemy import select

        table = self._tables.actuals
        values: dict[tuple[str, int], float] = {}
        for keys, first, end in _batches(observations):
            query = select(table.c.key, table.c.stamp, table.c.y).where(
                table.c.key.in_(keys), table.c.stamp.between(first, end)
            )
            values |= {(row.key, row.stamp): row.y for row in connection.execute(query)}
        return values

    def _affected_forecasts(
        self, observations: Sequence[ObservedSeries], check_deadline: Callable[[], object]
    ) -> dict[str, list[Sequence[int]]]:
        """Returns, by series, the timestamps of each forecast that covers some of the actuals."""
        from sqlalchemy import select

        table = self._tables.forecasts
        timestamps: dict[str, list[Sequence[int]]] = {}
        for keys, first, end in _batches(observations):
            query = select(table.c.key, table.c.stamps).where(
                table.c.key.in_(keys), table.c.ending >= first, table.c.origin < end
            )
            with self._translate_errors(), self._engine.begin() as connection:
                for row in connection.execute(query):
                    check_deadline()
                    timestamps.setdefault(row.key, []).append(json.loads(row.stamps))
        return timestamps

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translates errors of SQLAlchemy to LedgerError."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            reason = " ".join(redact_addresses(str(getattr(error, "orig", None) or error)).split())[:300]
            raise LedgerError(
                f"Expected a ledger at {getattr(self, 'address', 'the address')}; it cannot be used ({reason}). "
                "Check that the database exists, is writable, and is not locked by another process.",
                where="ledger",
            ) from error


def parse_database_url(url: str) -> Any:
    """Parses the URL of a ledger; raises LedgerError, whose message never repeats it, as it may hold a password."""
    try:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise MissingPackage(
            "A ledger needs the package 'sqlalchemy', which is not installed. Install it with: "
            "pip install 'recurrent-forecaster[serve]' (or [sources]).",
            where="ledger",
        ) from error
    try:
        address = make_url(url)
        is_supported = address.get_backend_name() in DATABASE_BACKENDS
    except (SQLAlchemyError, ValueError):
        is_supported = False
    if not is_supported:
        raise LedgerError(
            "Expected the database URL of a ledger, such as sqlite:////var/lib/forecaster/ledger.db or "
            "postgresql+psycopg://user:password@host/name; found something else. Correct the URL.",
            where="ledger",
        )
    return address


def _to_row(record: ForecastRecord) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in ("name", "version", "digest", "key", "id", "origin", "scale")}
    return row | {
        "made_at": record.made_at,
        "part": record.group,
        "ending": record.timestamps[-1],
        "horizon": len(record.timestamps),
        "stamps": json.dumps(list(record.timestamps), separators=(",", ":")),
        "body": encode_body(record),
    }


def _batches(observations: Sequence[ObservedSeries]) -> Iterator[tuple[list[str], int, int]]:
    """Yields batches of keys, with the first and the last of their timestamps."""
    non_empty = [item for item in observations if item.timestamps]
    for first in range(0, len(non_empty), BATCH_ROWS):
        batch = non_empty[first : first + BATCH_ROWS]
        yield (
            sorted({item.key for item in batch}),
            min(min(item.timestamps) for item in batch),
            max(max(item.timestamps) for item in batch),
        )


def _count_scored(observation: ObservedSeries, forecasts: Sequence[Sequence[int]]) -> tuple[int, dict[int, int]]:
    observed, scored, by_step = set(observation.timestamps), 0, dict[int, int]()
    for timestamps in forecasts:
        steps = [step for step, timestamp in enumerate(timestamps, 1) if timestamp in observed]
        scored += bool(steps)
        for step in steps:
            by_step[step] = by_step.get(step, 0) + 1
    return scored, dict(sorted(by_step.items()))
