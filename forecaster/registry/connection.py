"""Access to an MLflow store: a client, and the translation of its exceptions."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from forecaster.errors import BundleError, MissingPackage, NoSuchModel, RegistryError
from forecaster.installation import DISTRIBUTION
from forecaster.registry.lock import lock_database
from forecaster.registry.time_limit import STORE_VARIABLES, RemoteClient, limit_time
from forecaster.storage.addresses import redact_addresses

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Variables set by the user are not changed.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    **STORE_VARIABLES,
}
# Loggers that print a warning or a traceback before they raise the error, which we report.
_REPEATING_LOGGERS = ("mlflow.store.db.utils", "urllib3.connectionpool")
_CONNECTION_ERRORS = {
    "ReadTimeoutError": "it did not respond in time",
    "ConnectTimeoutError": "the connection was not accepted in time",
    "Connection refused": "the connection was refused",
    "NameResolutionError": "the name of the host cannot be resolved",
}
DATABASE_SCHEMES = ("postgresql", "mysql", "mssql")  # of MLflow, besides SQLite
_CREATION_LIMIT_S = 300.0  # of the tables of a new database


def create_client(uri: str) -> MlflowClient:
    """Returns a client of one MLflow store whose database is initialised; raises RegistryError, or MissingPackage for a database
    where MLflow is not installed.

    Two processes that open a new SQLite database at once would both migrate it, and one would fail: a lock serialises them.
    Each call to a store on another machine has a time limit (`limit_time`).
    """
    for key, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    for name in _REPEATING_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    where = f"the store '{redact_addresses(uri)}'"
    scheme = uri.partition("://")[0].partition("+")[0]
    is_local = scheme in ("sqlite", "file") or "://" not in uri
    if (scheme == "sqlite" or scheme in DATABASE_SCHEMES) and find_spec("alembic") is None:
        raise MissingPackage(
            f"Expected the package 'mlflow' for {where}; found 'mlflow-skinny' alone, which reads tracking servers only. "
            f"Install it with: pip install '{DISTRIBUTION}[track]'.",
            where=where,
        )
    is_new = scheme in DATABASE_SCHEMES and connect_to_database(uri, where=where) is None
    with (
        lock_database(uri),
        translate_store_errors(where),
        warnings.catch_warnings(),
        contextlib.nullcontext() if is_local else limit_time(where, limit_s=_CREATION_LIMIT_S if is_new else None),
    ):
        # MLflow 3.17 configures its tables, at first use, in a way that SQLAlchemy 2.1 deprecates.
        warnings.filterwarnings("ignore", r"The ``noload`` loader strategy is deprecated", DeprecationWarning)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    return client if is_local else cast("MlflowClient", RemoteClient(client, where))


def connect_to_database(uri: str, *, where: str) -> str | None:
    """Connects once to a database other than SQLite; returns the revision of MLflow's tables, None if it has none.

    MLflow would repeat a connection that fails for minutes. Raises RegistryError within the time limit, MissingPackage without
    the driver.
    """
    from sqlalchemy import create_engine, inspect, text

    for key, value in STORE_VARIABLES.items():
        os.environ.setdefault(key, value)
    try:
        with translate_store_errors(where):
            engine = create_engine(uri)
    except ImportError as error:
        raise MissingPackage(
            f"Expected the driver of {where}; found no package '{error.name}'. Install it; the driver of PostgreSQL is in "
            "recurrent-forecaster[postgres], for addresses that begin with postgresql+psycopg://.",
            where=where,
        ) from None
    try:
        with translate_store_errors(where), limit_time(where), engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar())
    finally:
        engine.dispose()


@contextlib.contextmanager
def translate_store_errors(where: str, *, not_found: type[RegistryError | BundleError] = NoSuchModel) -> Iterator[None]:
    """Translates MLflow's exceptions to RegistryError; `not_found` is raised for a missing resource."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message = redact_addresses(str(error.message)).removeprefix(f"{error.error_code}: ")
        reason = _shorten_connection_error(" ".join(message.split()).rstrip("."))
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise not_found(
                f"{where[:1].upper()}{where[1:]} is not in the store: {reason}. Check the name, or register it first.",
                where=where,
            ) from error
        if error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            raise RegistryError(
                f"The store rejected {where}: {reason}. Correct the value it names.", where=where
            ) from error
        raise RegistryError(
            f"The store failed on {where}: {reason}. Check the address of the store and that it is running, then try again.",
            where=where,
        ) from error
    except _database_errors() as error:
        raise RegistryError(
            f"The store failed on {where}: {_describe_database_error(error)}. Check the database and its address.",
            where=where,
        ) from error
    except OSError as error:
        raise RegistryError(
            f"The files of {where} cannot be read or written: {error}. Check the folder and its permissions.",
            where=where,
        ) from error


def _shorten_connection_error(reason: str) -> str:
    """Returns what happened to the connection, instead of a line in which MLflow, requests and urllib3 each repeat the URL."""
    if not reason.startswith("API request to "):
        return reason
    return next((meaning for name, meaning in _CONNECTION_ERRORS.items() if name in reason), reason)


def _describe_database_error(error: Exception) -> str:
    """Returns the message of the database in one line, without the query and the links that SQLAlchemy adds."""
    return redact_addresses(" ".join(str(getattr(error, "orig", None) or error).split())).rstrip(".")


def _database_errors() -> tuple[type[Exception], ...]:
    """Returns SQLAlchemy's base error where it is installed; a server without it accesses the registry over HTTP."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return ()
    return (SQLAlchemyError,)
