"""The command `serve`: starts the server and its follower."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forecaster.errors import NoSuchModel
from pipelines.commands.options import RootOptions

_ROOT_OPTIONS = RootOptions()


def serve(
    model: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_MODEL")] = None,
    *,
    host: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_HOST")] = None,
    port: Annotated[int | None, Parameter(env_var="FORECASTER_SERVING_PORT")] = None,
    keys: Annotated[Path | None, Parameter(env_var="FORECASTER_SERVING_KEYS_FILE")] = None,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Serves the champion of a registered model over HTTP, and follows it when another is promoted.

    A blend with statistical models needs the extra 'baselines' here too; without it the server refuses the blend.

    Parameters
    ----------
    model
        The registered model; without one, what was served last.
    host
        Address to listen on; 127.0.0.1 unless told otherwise.
    port
        Port to listen on; 3000 unless told otherwise.
    keys
        File with the hashes of API keys, as `key new` writes it: who has none of them is refused.
    """
    from pipelines.settings import build_serving_environment

    root = where.open_root()
    environment = build_serving_environment(os.environ, root, model=model, host=host, port=port, keys=keys)
    if model is None and environment["FORECASTER_SERVING_SLOT"] == str(root.slot) and not root.slot.exists():
        raise NoSuchModel(
            f"Expected a model to serve; none is named, and none was ever served from {root.path}. "
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

        Registry(root.store_uri).resolve(model, CHAMPION)  # a slip in the name would wait for ever
    # By name and not by import: serving and pipelines meet only in the registry.
    os.execve(sys.executable, [sys.executable, "-m", "serving"], environment)  # noqa: S606
