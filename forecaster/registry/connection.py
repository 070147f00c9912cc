"""Access to an MLflow store: a client, and the translation of its exceptions."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from forecaster.errors import BundleError, NoSuchModel, RegistryError
from forecaster.registry.lock import lock_database
from forecaster.storage.addresses import redact_addresses

if TYPE_CHECKING:
    from mlflow import MlflowClient

# A server that is down must cost seconds, not MLflow's minutes. Variables set by the user are not changed.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def create_client(uri: str) -> MlflowClient:
    """Returns a client of one MLflow store whose database is initialised; raises RegistryError.

    Two processes that open a new SQLite database at once would both migrate it, and one would fail: a lock serialises them.
    """
    for key, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    with (
        lock_database(uri),
        translate_store_errors(f"the store '{redact_addresses(uri)}'"),
        warnings.catch_warnings(),
    ):
        # MLflow 3.17 configures its tables, at first use, in a way that SQLAlchemy 2.1 deprecates.
        warnings.filterwarnings("ignore", r"The ``noload`` loader strategy is deprecated", DeprecationWarning)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    return client


@contextlib.contextmanager
def translate_store_errors(where: str, *, not_found: type[RegistryError | BundleError] = NoSuchModel) -> Iterator[None]:
    """Translates MLflow's exceptions to RegistryError; `not_found` is raised for a missing resource."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message = redact_addresses(str(error.message)).removeprefix(f"{error.error_code}: ")
        reason = " ".join(message.split()).rstrip(".")
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
            f"The store failed on {where}: {redact_addresses(str(error))}. Check the database and its address.",
            where=where,
        ) from error
    except OSError as error:
        raise RegistryError(
            f"The files of {where} cannot be read or written: {error}. Check the folder and its permissions.",
            where=where,
        ) from error


def _database_errors() -> tuple[type[Exception], ...]:
    """Returns SQLAlchemy's base error where it is installed; a server without it accesses the registry over HTTP."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return ()
    return (SQLAlchemyError,)
