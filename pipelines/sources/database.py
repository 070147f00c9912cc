"""Database queries through SQLAlchemy. The database URL is a secret of the environment; no message contains any part of it."""

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
    """Returns the rows of a query; the connection is read-only.

    Raises InputError if the URL or the query is wrong, SourceUnavailable if the database does not respond, and MissingPackage
    if its driver is not installed. No error is chained to the database's own exception, whose traceback could reveal the URL.
    """
    engine = _create_engine()
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    try:
        try:
            connection = engine.connect()
        except SQLAlchemyError as error:
            raise SourceUnavailable(
                f"Expected a connection to the database of {SQL_URL_VARIABLE}; {_describe_error(error)}. Check the URL, the "
                "password and that the database is running, then try again.",
                where=SQL_URL_VARIABLE,
            ) from None
        with connection:
            options: dict[str, Any] = {"no_parameters": True}  # a literal % in the query is not a placeholder
            if engine.dialect.name == "postgresql":
                options["postgresql_readonly"] = True
            connection = connection.execution_options(**options)
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            try:
                return pd.read_sql_query(query, connection)
            except (SQLAlchemyError, pd.errors.DatabaseError) as error:
                cause = error.__cause__ if isinstance(error, pd.errors.DatabaseError) else error
                if isinstance(cause, DBAPIError) and cause.connection_invalidated:
                    raise SourceUnavailable(
                        f"Expected the complete result from the database of {SQL_URL_VARIABLE}; the connection was lost: "
                        f"{_describe_error(cause)}. Try again.",
                        where=SQL_URL_VARIABLE,
                    ) from None
                raise InputError(
                    f"Expected a query that returns rows; {_describe_error(cause)}. Correct --sql.",
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
            "Expected the package 'sqlalchemy' for database queries; found none. Install recurrent-forecaster[sources].",
            where=_SQL_OPTION,
        ) from error
    secret_url = read_secret(SQL_URL_VARIABLE)
    if secret_url is None:
        raise InputError(
            f"Expected a database URL in {SQL_URL_VARIABLE}; found none. Set it to postgresql://USER:PASSWORD@HOST/NAME, or "
            "sqlite:////path/to/file.db.",
            where=SQL_URL_VARIABLE,
        )
    try:
        url = make_url(secret_url.get_secret_value())
        connect_args = {"connect_timeout": _CONNECT_TIMEOUT_S} if url.get_backend_name() == "postgresql" else {}
        # SQLite would create a missing file.
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise InputError(
                f"Expected the file of a SQLite database in {SQL_URL_VARIABLE}; found none at {url.database!r}. Check the path; "
                "an absolute path has four slashes.",
                where=SQL_URL_VARIABLE,
            )
        return create_engine(url, connect_args=connect_args)
    except ImportError as error:
        raise MissingPackage(
            f"Expected the database driver of {SQL_URL_VARIABLE}; {redact(str(error))}. Install it; the driver of PostgreSQL is "
            "in recurrent-forecaster[postgres].",
            where=SQL_URL_VARIABLE,
        ) from None
    except (ArgumentError, ValueError):  # both may repeat the URL
        raise InputError(
            f"Expected a database URL in {SQL_URL_VARIABLE}; its value cannot be parsed as one. Write it as "
            "postgresql://USER:PASSWORD@HOST/NAME, with special characters of the password percent-encoded (%40 for @).",
            where=SQL_URL_VARIABLE,
        ) from None


def _describe_error(error: BaseException | None) -> str:
    """Returns the first line of the database's message without secrets; the further lines repeat the query."""
    message = str(getattr(error, "orig", None) or error).strip().split("\n")[0]
    return redact(message).rstrip(".")
