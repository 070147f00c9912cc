"""The command `forecaster key new`: creates API keys of the service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pipelines.commands.options import RootOptions

key_app = App(name="key", help="Creates API keys of the service.")
_ROOT_OPTIONS = RootOptions()


@key_app.command(name="new")
def new_key(
    name: str,
    *,
    scope: Annotated[tuple[str, ...], Parameter(negative="")] = ("read",),
    keys: Annotated[Path | None, Parameter(env_var="FORECASTER_SERVING_KEYS_FILE")] = None,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Creates an API key, prints it this one time, and adds its hash to the file for `serve --keys`.

    A running service reloads the file by itself. To revoke a key, delete its line.

    Parameters
    ----------
    name
        The owner of the key, as written to the access log.
    scope
        read (forecasts, the model, its accuracy), actuals (sending late actuals), observe (metrics) or admin (everything);
        may be repeated.
    keys
        The file of key hashes; by default `keys` under the root.
    """
    file = (keys or root_options.open_root().path / "keys").expanduser().absolute()
    # Run by name rather than imported: serving and pipelines meet only in the registry.
    os.execv(sys.executable, [sys.executable, "-m", "serving.asgi.auth", name, ",".join(scope), str(file)])  # noqa: S606
