"""The command `key new`: makes API keys for the service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pipelines.commands.options import RootOptions

key_app = App(name="key", help="API keys of the service.")
_ROOT_OPTIONS = RootOptions()


@key_app.command(name="new")
def new_key(
    name: str,
    *,
    scope: Annotated[tuple[str, ...], Parameter(negative="")] = ("read",),
    keys: Annotated[Path | None, Parameter(env_var="FORECASTER_SERVING_KEYS_FILE")] = None,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Makes an API key: prints it, this once, and adds its hash to a file for `serve --keys`.

    A running service takes it up by itself. To withdraw a key, remove its line.

    Parameters
    ----------
    name
        Whose it is; it stands in the access log.
    scope
        read (forecasts, the model, its accuracy), actuals (telling what came), observe (the counters) or admin (everything);
        may be given again.
    keys
        The file; `keys` under the root, if not given.
    """
    file = (keys or where.open_root().path / "keys").expanduser().absolute()
    # By name and not by import, as `serve`.
    os.execv(sys.executable, [sys.executable, "-m", "serving.asgi.auth", name, ",".join(scope), str(file)])  # noqa: S606
