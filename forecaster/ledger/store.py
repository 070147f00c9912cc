"""The ledger as a database: forecasts and actuals go in, each once, and come out side by side."""

from __future__ import annotations

import json
import secrets
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

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

DATABASE_BACKENDS = ("sqlite", "postgresql")
LOCK_TIMEOUT_S = 5.0
BATCH_ROWS = 500  # forecasts that are read together, and series that are looked up together


class Ledger:
    """The ledger behind one database address; threads may share it.

    Every method raises LedgerError when the database cannot be reached, is held by others for too long, or refuses.
    """

    def __init__(self, url: str, *, timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Opens a ledger, which is made where there is none.

        Args:
            url: As SQLAlchemy writes it: sqlite:////var/lib/ledger.db, postgresql+psycopg://user:password@host/name.
            patience_s: How long a database that others hold is waited for.
        Raises:
            LedgerError: the address is none, or nothing answers there.
            MissingPackage: SQLAlchemy, or the driver of the database, is not installed.
        """
        address = parse_database_url(url)
        from forecaster.ledger import tables

        self.address = address.render_as_string(hide_password=True)
        self._tables = tables
        with self._translate_errors():
            try:
                self._engine = tables.create_database_engine(address, timeout_s=timeout_s)
            except ModuleNotFoundError as error:
                raise MissingPackage(
                    f"A ledger in {address.get_backend_name()} needs the package {error.name!r}, which is not installed. "
                    "Install the extra that has it: pip install 'forecaster[postgres]'.",
                    where="ledger",
                ) from error
            tables.create_tables(self._engine)
        self._write_engine = self._engine.execution_options(writes=True)
        self.salt = self._load_salt()

    def close(self) -> None:
        """Lets the database go."""
        self._engine.dispose()

    def record(self, records: Sequence[ForecastRecord]) -> int:
        """Keeps forecasts; answers how many are new, or reach further than what was there.

        Of one model, series and origin there is one: the first that was served, unless a later one reaches further ahead.
        """
        table = self._tables.forecasts
        statement = self._insert_statement(table)
        statement = statement.on_conflict_do_update(
            index_elements=["digest", "key", "origin"],
            set_={name: statement.excluded[name] for name in ("ending", "horizon", "scale", "stamps", "body")},
            where=statement.excluded.horizon > table.c.horizon,
        )
        rows = [_to_row(one) for one in records]
        if not rows:
            return 0
        with self._translate_errors(), self._write_engine.begin() as connection:
            done = connection.execute(statement, rows, execution_options={"preserve_rowcount": True})
            return int(done.rowcount)

    def observe(
        self, observations: Sequence[ObservedSeries], *, now: float, check_deadline: Callable[[], object] = lambda: None
    ) -> list[ObservationResult]:
        """Keeps what came, each value of a series and stamp once: told again it changes nothing, told otherwise it replaces.

        Args:
            observed: In the order in which they were told; of two that say different things of one stamp the later counts.
            at: Now, in seconds since 1970.
            pulse: Called now and then once all is kept; it may raise.
        """
        table = self._tables.actuals
        statement = self._insert_statement(table)
        statement = statement.on_conflict_do_update(
            index_elements=["key", "stamp"], set_={"y": statement.excluded.y, "told_at": statement.excluded.told_at}
        )
        with self._translate_errors(), self._write_engine.begin() as connection:
            known = self._stored_values(connection, observations)
            fresh: dict[tuple[str, int], float] = {}
            counted: list[tuple[int, int]] = []
            for one in observations:
                stored = corrected = 0
                for stamp, value in zip(one.timestamps, one.values, strict=True):
                    before = known.get((one.key, stamp))
                    if before != value:
                        stored, corrected = stored + (before is None), corrected + (before is not None)
                        known[one.key, stamp] = fresh[one.key, stamp] = value
                counted.append((stored, corrected))
            if fresh:
                rows = [{"key": key, "stamp": stamp, "y": y, "told_at": now} for (key, stamp), y in fresh.items()]
                connection.execute(statement, rows)
        steps = self._affected_forecasts(observations, check_deadline)
        return [
            ObservationResult(*two, *_count_scored(one, steps.get(one.key, ())))
            for one, two in zip(observations, counted, strict=True)
        ]

    def span(self, selection: ForecastFilter) -> ForecastSpan:
        """How many forecasts there are of some, and when they were made."""
        from sqlalchemy import func, select

        time = self._tables.forecasts.c.made_at
        with self._translate_errors(), self._engine.begin() as connection:
            count, first, last = connection.execute(
                select(func.count(), func.min(time), func.max(time)).where(*self._conditions(selection))
            ).one()
        return ForecastSpan(int(count), first, last)

    def models(self, selection: ForecastFilter) -> list[ModelIdentity]:
        """The models that forecasts are of, the one used last first."""
        from sqlalchemy import func, select

        table = self._tables.forecasts
        columns = (table.c.name, table.c.version, table.c.digest)
        with self._translate_errors(), self._engine.begin() as connection:
            found = connection.execute(
                select(*columns)
                .where(*self._conditions(selection))
                .group_by(*columns)
                .order_by(func.max(table.c.made_at).desc())
            ).all()
        return [ModelIdentity(*row) for row in found]

    def forecasts_with_actuals(
        self, selection: ForecastFilter
    ) -> Iterator[tuple[Sequence[Any], Mapping[tuple[str, int], float]]]:
        """Forecasts of which something is known, some at a time in order of series and origin, and what is known of them.

        Rows have `key, part, made_at, origin, scale, stamps, body`; actuals are by series and stamp.
        """
        from sqlalchemy import and_, exists, select, tuple_

        table, came = self._tables.forecasts, self._tables.actuals
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
        known = exists().where(came.c.key == table.c.key, came.c.stamp > table.c.origin, came.c.stamp <= table.c.ending)
        query = (
            select(*columns, table.c.ending, table.c.number).where(*self._conditions(selection), known).order_by(*order)
        )
        last: tuple[Any, ...] | None = None
        while True:
            some = query if last is None else query.where(tuple_(*order) > last)
            with self._translate_errors(), self._engine.begin() as connection:
                rows = connection.execute(some.limit(BATCH_ROWS)).all()
                if not rows:
                    return
                within = and_(
                    came.c.key.between(rows[0].key, rows[-1].key),
                    came.c.stamp.between(min(row.origin for row in rows), max(row.ending for row in rows)),
                )
                found = connection.execute(select(came.c.key, came.c.stamp, came.c.y).where(within)).all()
            last = (rows[-1].key, rows[-1].origin, rows[-1].number)
            yield rows, {(row.key, row.stamp): row.y for row in found}

    def latest_forecasts(self, selection: ForecastFilter, *, limit: int) -> Sequence[Any]:
        """The latest forecasts, scored or not, latest first; rows as those of `forecasts_with_actuals`."""
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
        """Keeps what late actuals have taught about a model."""
        table = self._tables.drifts
        statement = self._insert_statement(table)
        statement = statement.on_conflict_do_update(
            index_elements=["digest"], set_={"state": statement.excluded.state, "made_at": statement.excluded.made_at}
        )
        with self._translate_errors(), self._write_engine.begin() as connection:
            connection.execute(statement, {"digest": digest, "state": state, "made_at": now})

    def load_adaptive_state_json(self, digest: str) -> str | None:
        """What was kept for a model, if anything."""
        from sqlalchemy import select

        table = self._tables.drifts
        with self._translate_errors(), self._engine.begin() as connection:
            return connection.execute(select(table.c.state).where(table.c.digest == digest)).scalar()

    def prune(self, *, before: float) -> int:
        """Forgets forecasts that were made, and actuals that were told, before a time; answers how many forecasts."""
        from sqlalchemy import delete

        table, came = self._tables.forecasts, self._tables.actuals
        with self._translate_errors(), self._write_engine.begin() as connection:
            gone = connection.execute(delete(table).where(table.c.made_at < before)).rowcount
            connection.execute(delete(came).where(came.c.told_at < before))
        return int(gone)

    def _load_salt(self) -> bytes:
        from sqlalchemy import select

        table = self._tables.facts
        told = [
            {"name": "schema", "value": self._tables.LEDGER_SCHEMA_VERSION},
            {"name": "salt", "value": secrets.token_hex(32)},
        ]
        with self._translate_errors(), self._write_engine.begin() as connection:
            connection.execute(self._insert_statement(table).on_conflict_do_nothing(), told)
            found = {row.name: row.value for row in connection.execute(select(table.c.name, table.c.value))}
        if found["schema"] != self._tables.LEDGER_SCHEMA_VERSION:
            raise LedgerError(
                f"Expected a ledger of schema {self._tables.LEDGER_SCHEMA_VERSION} in {self.address}; it has schema {found['schema']}. "
                "Use the version of forecaster that wrote it, or another ledger.",
                where="ledger",
            )
        return bytes.fromhex(found["salt"])

    def _insert_statement(self, table: Any) -> Any:
        """An insert that may meet what is there already."""
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
        found: dict[tuple[str, int], float] = {}
        for some, first, end in _batches(observations):
            query = select(table.c.key, table.c.stamp, table.c.y).where(
                table.c.key.in_(some), table.c.stamp.between(first, end)
            )
            found |= {(row.key, row.stamp): row.y for row in connection.execute(query)}
        return found

    def _affected_forecasts(
        self, observations: Sequence[ObservedSeries], check_deadline: Callable[[], object]
    ) -> dict[str, list[Sequence[int]]]:
        """By series, the stamps of each forecast that reaches to what came."""
        from sqlalchemy import select

        table = self._tables.forecasts
        found: dict[str, list[Sequence[int]]] = {}
        for some, first, end in _batches(observations):
            query = select(table.c.key, table.c.stamps).where(
                table.c.key.in_(some), table.c.ending >= first, table.c.origin < end
            )
            with self._translate_errors(), self._engine.begin() as connection:
                for row in connection.execute(query):
                    check_deadline()
                    found.setdefault(row.key, []).append(json.loads(row.stamps))
        return found

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Where SQLAlchemy's errors become ours."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
            raise LedgerError(
                f"Expected a ledger at {getattr(self, 'address', 'the address')}; it cannot be used ({reason}). "
                "See that the database is there, can be written, and is not held by others.",
                where="ledger",
            ) from error


def parse_database_url(url: str) -> Any:
    """The address of a ledger; raises LedgerError, which never repeats it, for it may hold a password."""
    try:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise MissingPackage(
            "A ledger needs the package 'sqlalchemy', which is not installed. Install the extra that has it: "
            "pip install 'forecaster[serve]' (or [sources]).",
            where="ledger",
        ) from error
    try:
        address = make_url(url)
        known = address.get_backend_name() in DATABASE_BACKENDS
    except (SQLAlchemyError, ValueError):
        known = False
    if not known:
        raise LedgerError(
            "Expected the address of a ledger, such as sqlite:////var/lib/forecaster/ledger.db or "
            "postgresql+psycopg://user:password@host/name; found something else. Correct it.",
            where="ledger",
        )
    return address


def _to_row(record: ForecastRecord) -> dict[str, Any]:
    told = {name: getattr(record, name) for name in ("name", "version", "digest", "key", "id", "origin", "scale")}
    return told | {
        "made_at": record.made_at,
        "part": record.group,
        "ending": record.timestamps[-1],
        "horizon": len(record.timestamps),
        "stamps": json.dumps(list(record.timestamps), separators=(",", ":")),
        "body": encode_body(record),
    }


def _batches(observations: Sequence[ObservedSeries]) -> Iterator[tuple[list[str], int, int]]:
    """Some keys at a time, with the first and the last of their stamps."""
    told = [one for one in observations if one.timestamps]
    for first in range(0, len(told), BATCH_ROWS):
        some = told[first : first + BATCH_ROWS]
        yield (
            sorted({one.key for one in some}),
            min(min(one.timestamps) for one in some),
            max(max(one.timestamps) for one in some),
        )


def _count_scored(observation: ObservedSeries, forecasts: Sequence[Sequence[int]]) -> tuple[int, dict[int, int]]:
    came, scored, by_step = set(observation.timestamps), 0, dict[int, int]()
    for stamps in forecasts:
        steps = [step for step, stamp in enumerate(stamps, 1) if stamp in came]
        scored += bool(steps)
        for step in steps:
            by_step[step] = by_step.get(step, 0) + 1
    return scored, dict(sorted(by_step.items()))
