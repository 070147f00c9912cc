"""The command `forecaster serve`: starts the service."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forecaster.errors import NoSuchModel
from forecaster.installation import describe_missing_module
from pipelines.commands.options import RootOptions

_ROOT_OPTIONS = RootOptions()


def serve(
    model: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_MODEL")] = None,
    *,
    host: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_HOST")] = None,
    port: Annotated[int | None, Parameter(env_var="FORECASTER_SERVING_PORT")] = None,
    keys: Annotated[Path | None, Parameter(env_var="FORECASTER_SERVING_KEYS_FILE")] = None,
    root_path: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_ROOT_PATH")] = None,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Serves the champion of a registered model over HTTP, and switches to a new champion when one is promoted.

    A blend with statistical models also needs the extra 'baselines'; without it the service rejects the blend.

    Parameters
    ----------
    model
        The registered model; by default the model that was served last.
    host
        Address to listen on; by default 127.0.0.1.
    port
        Port to listen on; by default 3000.
    keys
        File with the hashes of API keys, as written by `key new`; requests without one of these keys are rejected.
    root_path
        Path below which a reverse proxy serves the page and the API, such as /forecasts; by default none.
    """
    from pipelines.settings import build_serving_environment

    if find_spec("bentoml") is None:
        raise describe_missing_module("bentoml", purpose="a service")
    root = root_options.open_root()
    environment = build_serving_environment(
        os.environ, root, model=model, host=host, port=port, keys=keys, root_path=root_path
    )
    if model is None and environment["FORECASTER_SERVING_SLOT"] == str(root.slot) and not root.slot.exists():
        raise NoSuchModel(
            f"Expected a model to serve; no name was given, and no model was served from {root.path} before. "
            "Name a registered model: forecaster serve NAME, or FORECASTER_SERVING_MODEL=NAME.",
            where="model",
        )
    if (
        model is not None
        and root.tracking_uri is None
        and not root.slot.exists()
        and (root.path / "mlflow.db").exists()
    ):
        from forecaster.registry.registry import CHAMPION, Registry

        Registry(root.store_uri).resolve(model, CHAMPION)  # with a misspelled name the service would wait for ever
    # Run by name rather than imported: serving and pipelines meet only in the registry.
    os.execve(sys.executable, [sys.executable, "-m", "serving"], environment)  # noqa: S606
