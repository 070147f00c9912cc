"""`python -m serving`: starts the server and its follower, configured by FORECASTER_SERVING_*."""

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
        for detail in error.errors():
            name = f"{ENV_PREFIX}{'.'.join(map(str, detail['loc'])).upper()}"
            is_secret = "KEY" in name or name == f"{ENV_PREFIX}LEDGER"  # a database's address may hold a password
            value = "a value that is not shown because it may be secret" if is_secret else repr(detail["input"])
            print(f"forecaster: {name}: {detail['msg']}; found {value}. Correct it.", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    try:
        build_keyring(settings)  # validated before any process starts; each worker reads the keys for itself
    except InvalidKeys as error:
        print(f"forecaster: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    sys.exit(serve(settings))
