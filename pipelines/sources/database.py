"""A query of a database, through SQLAlchemy. The database's address is a secret of the environment; nothing of it is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from forecaster.errors import InputError, MissingPackage, SourceUnavailable
from pipelines.redaction import SQL_URL, redacted, secret

if TYPE_CHECKING:
    from sqlalchemy import Engine

_PATIENCE_S = 10
_WHERE = "--sql"


def ask(query: str) -> pd.DataFrame:
    """The rows of a query, read only.

    Raises InputError where the address or the query is wrong, SourceUnavailable where the database does not answer,
    MissingPackage where its driver is not installed. No error has the database's own exception behind it: a traceback of that
    could tell the address.
    """
    engine = _engine()
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    try:
        try:
            connection = engine.connect()
        except SQLAlchemyError as error:
            raise SourceUnavailable(
                f"Expected the database of {SQL_URL} to answer; {_said(error)}. Check the address, the password and that it "
                "is up, then try again.",
                where=SQL_URL,
            ) from None
        with connection:
            options: dict[str, Any] = {"no_parameters": True}  # a % in the query is a %
            if engine.dialect.name == "postgresql":
                options["postgresql_readonly"] = True
            connection = connection.execution_options(**options)
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            try:
                return pd.read_sql_query(query, connection)
            except (SQLAlchemyError, pd.errors.DatabaseError) as error:
                fault = error.__cause__ if isinstance(error, pd.errors.DatabaseError) else error
                if isinstance(fault, DBAPIError) and fault.connection_invalidated:
                    raise SourceUnavailable(
                        f"Expected the database of {SQL_URL} to answer to the end; {_said(fault)}. Try again.",
                        where=SQL_URL,
                    ) from None
                raise InputError(
                    f"Expected a query that the database answers with rows; {_said(fault)}. Correct --sql.",
                    where=_WHERE,
                ) from None
    finally:
        engine.dispose()


def _engine() -> Engine:
    try:
        from sqlalchemy import create_engine
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError as error:
        raise MissingPackage(
            "Expected the package 'sqlalchemy', which asks databases; found none. Install forecaster[sources].",
            where=_WHERE,
        ) from error
    address = secret(SQL_URL)
    if address is None:
        raise InputError(
            f"Expected the address of a database in {SQL_URL}; found none. Set it to postgresql://USER:PASSWORD@HOST/NAME, or "
            "sqlite:////path/to/file.db.",
            where=SQL_URL,
        )
    try:
        url = make_url(address.get_secret_value())
        patience = {"connect_timeout": _PATIENCE_S} if url.get_backend_name() == "postgresql" else {}
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():  # SQLite would make one
            raise InputError(
                f"Expected the file of a SQLite database in {SQL_URL}; found none at {url.database!r}. Check the path; an "
                "absolute one has four slashes.",
                where=SQL_URL,
            )
        return create_engine(url, connect_args=patience)
    except ImportError as error:
        raise MissingPackage(
            f"Expected the driver that {SQL_URL} asks for; {redacted(str(error))}. Install it; PostgreSQL's is in "
            "forecaster[postgres].",
            where=SQL_URL,
        ) from None
    except (ArgumentError, ValueError):  # both may repeat the address
        raise InputError(
            f"Expected the address of a database in {SQL_URL}; it cannot be read as one. Write it as "
            "postgresql://USER:PASSWORD@HOST/NAME, odd characters of the password quoted as in %40.",
            where=SQL_URL,
        ) from None


def _said(error: BaseException | None) -> str:
    """The first line of what the database says, without its address; the rest repeats the query."""
    said = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
    return redacted(said).rstrip(".")
