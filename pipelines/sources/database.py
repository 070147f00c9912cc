"""A query of a database, through SQLAlchemy. The database's address is a secret of the environment; nothing of it is told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from forecaster.errors import InputError, MissingPackage, SourceUnavailable
from pipelines.redaction import SQL_URL_VARIABLE, read_secret, redact

if TYPE_CHECKING:
    from sqlalchemy import Engine

_CONNECT_TIMEOUT_S = 10
_SQL_OPTION = "--sql"


def run_query(query: str) -> pd.DataFrame:
    """The rows of a query, read only.

    Raises InputError where the address or the query is wrong, SourceUnavailable where the database does not answer,
    MissingPackage where its driver is not installed. No error has the database's own exception behind it: a traceback of that
    could tell the address.
    """
    engine = _create_engine()
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    try:
        try:
            connection = engine.connect()
        except SQLAlchemyError as error:
            raise SourceUnavailable(
                f"Expected the database of {SQL_URL_VARIABLE} to answer; {_describe_error(error)}. Check the address, the password and that it "
                "is up, then try again.",
                where=SQL_URL_VARIABLE,
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
                        f"Expected the database of {SQL_URL_VARIABLE} to answer to the end; {_describe_error(fault)}. Try again.",
                        where=SQL_URL_VARIABLE,
                    ) from None
                raise InputError(
                    f"Expected a query that the database answers with rows; {_describe_error(fault)}. Correct --sql.",
                    where=_SQL_OPTION,
                ) from None
    finally:
        engine.dispose()


def _create_engine() -> Engine:
    try:
        from sqlalchemy import create_engine
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError as error:
        raise MissingPackage(
            "Expected the package 'sqlalchemy', which asks databases; found none. Install forecaster[sources].",
            where=_SQL_OPTION,
        ) from error
    address = read_secret(SQL_URL_VARIABLE)
    if address is None:
        raise InputError(
            f"Expected the address of a database in {SQL_URL_VARIABLE}; found none. Set it to postgresql://USER:PASSWORD@HOST/NAME, or "
            "sqlite:////path/to/file.db.",
            where=SQL_URL_VARIABLE,
        )
    try:
        url = make_url(address.get_secret_value())
        patience = {"connect_timeout": _CONNECT_TIMEOUT_S} if url.get_backend_name() == "postgresql" else {}
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():  # SQLite would make one
            raise InputError(
                f"Expected the file of a SQLite database in {SQL_URL_VARIABLE}; found none at {url.database!r}. Check the path; an "
                "absolute one has four slashes.",
                where=SQL_URL_VARIABLE,
            )
        return create_engine(url, connect_args=patience)
    except ImportError as error:
        raise MissingPackage(
            f"Expected the driver that {SQL_URL_VARIABLE} asks for; {redact(str(error))}. Install it; PostgreSQL's is in "
            "forecaster[postgres].",
            where=SQL_URL_VARIABLE,
        ) from None
    except (ArgumentError, ValueError):  # both may repeat the address
        raise InputError(
            f"Expected the address of a database in {SQL_URL_VARIABLE}; it cannot be read as one. Write it as "
            "postgresql://USER:PASSWORD@HOST/NAME, odd characters of the password quoted as in %40.",
            where=SQL_URL_VARIABLE,
        ) from None


def _describe_error(error: BaseException | None) -> str:
    """The first line of what the database says, without its address; the rest repeats the query."""
    said = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
    return redact(said).rstrip(".")
