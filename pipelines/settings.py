"""Where we run: all state under one root folder, and what the service is told of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from forecaster.errors import InputError, RegistryError

SERVING_PREFIX = "FORECASTER_SERVING_"  # how the service's settings begin


class Root(NamedTuple):
    """The folder of all state, and what lies where in it.

    Attributes:
        path: The folder (`--root`, FORECASTER_ROOT).
        uri: An MLflow server that holds runs and models instead of the folder's own database, if there is one.
    """

    path: Path
    tracking_uri: str | None = None

    @property
    def store_uri(self) -> str:
        """The MLflow store of runs and models; raises RegistryError."""
        return resolve_tracking_uri(self.path, self.tracking_uri)

    @property
    def studies_url(self) -> str:
        """The database of searches, always the folder's own; raises RegistryError."""
        return _build_sqlite_url(self.path, "tune.db")

    @property
    def bundles(self) -> Path:
        """Bundles that trainings wrote, a folder each."""
        return self.path / "bundles"

    @property
    def checkpoints(self) -> Path:
        """Trainings under way, a folder each; gone when they end well."""
        return self.path / "checkpoints"

    @property
    def bundle_cache(self) -> Path:
        """Bundles copied from the registry, by digest."""
        return self.path / "fetched"

    @property
    def audit_log(self) -> Path:
        """Who answered users, from when on: every promotion and rollback, a line each."""
        return self.path / "audit.jsonl"

    @property
    def verdicts(self) -> Path:
        """What the gate said of challengers, a folder for each run."""
        return self.path / "verdicts"

    @property
    def schedule(self) -> Path:
        """What is scheduled, how it went, and the queue."""
        return self.path / "schedule"

    @property
    def slot(self) -> Path:
        """What the service serves."""
        return self.path / "slot"


def resolve_tracking_uri(root: Path, tracking_uri: str | None = None) -> str:
    """The MLflow store of a root folder, unless a URI names another.

    Raises RegistryError for the few paths that a database URI cannot carry: MLflow makes the folder of the path as it
    stands, and opens the path decoded, so quoting does not help.
    """
    return tracking_uri or _build_sqlite_url(root, "mlflow.db")


def _build_sqlite_url(root: Path, name: str) -> str:
    folder = root.absolute()
    if re.search(r"\?|%[0-9A-Fa-f]{2}", str(folder)):
        raise RegistryError(
            f"A root folder needs a path without '?' and without '%' before two hex digits; it is {folder}. "
            "Use another folder.",
            where=str(folder),
        )
    return f"sqlite:///{folder}/{name}"


def validate_tracking_uri(tracking_uri: str | None) -> None:
    """Refuses a server's address with a name or password in it: addresses are told, logged and kept; raises InputError."""
    parts = urlsplit(tracking_uri or "")
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        raise InputError(
            f"Expected the address of a tracking server alone; found one with credentials, for {parts.hostname}. Leave them out, "
            "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
            where="tracking_uri",
        )


def build_serving_environment(
    environ: Mapping[str, str],
    root: Root,
    *,
    model: str | None,
    host: str | None,
    port: int | None,
    keys: Path | None = None,
) -> dict[str, str]:
    """The environment in which `python -m serving` serves the champion of a model from this root.

    Args:
        environ: What is set already. A slot or a registry named there is kept: then state does not live under the root.
        root: Where the slot and the registry are otherwise.
        model: The registered model to follow; None serves what is in the slot.
        host: Address to listen on; None for the service's own choice.
        port: Port to listen on; None for the service's own choice.
        keys: File with hashes of API keys; None for what is set already, or none.
    """
    places = {"SLOT": str(root.slot), "REGISTRY": root.store_uri if model else None}
    told = {"MODEL": model, "HOST": host, "PORT": None if port is None else str(port)}
    told["KEYS_FILE"] = None if keys is None else str(keys.expanduser().absolute())
    return {**_build_variables(places), **environ, **_build_variables(told)}


def _build_variables(settings: Mapping[str, str | None]) -> dict[str, str]:
    return {f"{SERVING_PREFIX}{name}": value for name, value in settings.items() if value is not None}
