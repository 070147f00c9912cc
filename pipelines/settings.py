"""The root folder with all state, and the environment of the service that uses it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from forecaster.errors import InputError, RegistryError

SERVING_PREFIX = "FORECASTER_SERVING_"  # the prefix of the service's settings


class Root(NamedTuple):
    """The folder of all state, and the paths in it.

    Attributes:
        path: The folder (`--root`, FORECASTER_ROOT).
        tracking_uri: An MLflow server that stores runs and models; None uses a database in the folder.
    """

    path: Path
    tracking_uri: str | None = None

    @property
    def store_uri(self) -> str:
        """The URI of the MLflow store of runs and models; raises RegistryError."""
        return resolve_tracking_uri(self.path, self.tracking_uri)

    @property
    def studies_url(self) -> str:
        """The URL of the database of searches, which is always in the folder; raises RegistryError."""
        return _build_sqlite_url(self.path, "tune.db")

    @property
    def bundles(self) -> Path:
        """The bundles that trainings wrote, one folder each."""
        return self.path / "bundles"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints of unfinished trainings, one folder each; deleted when a training succeeds."""
        return self.path / "checkpoints"

    @property
    def bundle_cache(self) -> Path:
        """Bundles downloaded from the registry, by digest."""
        return self.path / "fetched"

    @property
    def audit_log(self) -> Path:
        """The audit log: one line for every promotion and rollback."""
        return self.path / "audit.jsonl"

    @property
    def verdicts(self) -> Path:
        """The verdicts of the gate, one folder per run."""
        return self.path / "verdicts"

    @property
    def schedule(self) -> Path:
        """The scheduled jobs, their results, and the queue."""
        return self.path / "schedule"

    @property
    def slot(self) -> Path:
        """The slot with the model that the service serves."""
        return self.path / "slot"


def resolve_tracking_uri(root: Path, tracking_uri: str | None = None) -> str:
    """Returns the URI of the MLflow store: the given one, or the database of the root folder.

    Raises RegistryError for the few paths that a database URI cannot represent: MLflow creates the folder of the path as
    written but opens the decoded path, so percent-encoding does not help.
    """
    return tracking_uri or _build_sqlite_url(root, "mlflow.db")


def _build_sqlite_url(root: Path, name: str) -> str:
    folder = root.absolute()
    if re.search(r"\?|%[0-9A-Fa-f]{2}", str(folder)):
        raise RegistryError(
            f"Expected a root folder without '?' and without '%' before two hex digits in its path; found {folder}. "
            "Use another folder.",
            where=str(folder),
        )
    return f"sqlite:///{folder}/{name}"


def validate_tracking_uri(tracking_uri: str | None) -> None:
    """Rejects a tracking URI with credentials, because the URI is printed, logged and stored; raises InputError."""
    parts = urlsplit(tracking_uri or "")
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        raise InputError(
            f"Expected a tracking URI without credentials; found credentials for {parts.hostname}. Leave them out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
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
    root_path: str | None = None,
    pretrained: bool = False,
) -> dict[str, str]:
    """Builds the environment in which `python -m serving` serves the champion of a model from this root.

    Args:
        environ: The current environment. Its slot and registry take precedence over those of the root.
        root: The default location of slot and registry.
        model: The registered model to follow; None serves the model in the slot.
        host: Address to listen on; None for the default of the service.
        port: Port to listen on; None for the default of the service.
        keys: File with hashes of API keys; None keeps the current environment.
        root_path: Path below which a reverse proxy serves the service; None keeps the current environment.
        pretrained: Serve the pretrained network instead of a model.
    """
    defaults = {"SLOT": str(root.slot), "REGISTRY": root.store_uri if model else None}
    options = {"MODEL": model, "HOST": host, "PORT": None if port is None else str(port)}
    options["ROOT_PATH"] = root_path
    options["KEYS_FILE"] = None if keys is None else str(keys.expanduser().absolute())
    options["PRETRAINED"] = "true" if pretrained else None
    environment = {**_build_variables(defaults), **environ, **_build_variables(options)}
    if pretrained:  # `serve base` may also be written as the environment variable, which names a registered model
        environment.pop(f"{SERVING_PREFIX}MODEL", None)
    return environment


def _build_variables(settings: Mapping[str, str | None]) -> dict[str, str]:
    return {f"{SERVING_PREFIX}{name}": value for name, value in settings.items() if value is not None}
