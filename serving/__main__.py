"""`python -m serving`: the server and its follower, set up by FORECASTER_SERVING_*."""

from __future__ import annotations

import os
import sys

from pydantic import ValidationError

from serving import log_format
from serving.asgi.auth import InvalidKeys, build_keyring
from serving.settings import ENV_PREFIX, Settings
from serving.supervisor import serve

if __name__ == "__main__":
    log_format.configure_logging()
    try:
        settings = Settings.from_environment(os.environ)
    except ValidationError as error:
        for fault in error.errors():
            name = f"{ENV_PREFIX}{'.'.join(map(str, fault['loc'])).upper()}"
            secret = "KEY" in name or name == f"{ENV_PREFIX}LEDGER"  # a database's address may hold a password
            found = "what is not shown, as it may be a key" if secret else repr(fault["input"])
            print(f"forecaster: {name}: {fault['msg']}; found {found}. Correct it.", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    try:
        build_keyring(settings)  # before any process is started; each worker reads them for itself
    except InvalidKeys as error:
        print(f"forecaster: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    sys.exit(serve(settings))
