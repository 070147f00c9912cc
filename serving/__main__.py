"""`python -m serving`: starts the server and its follower, configured by FORECASTER_SERVING_*."""

from __future__ import annotations

import os
import sys

from pydantic import ValidationError

from forecaster.storage.secret_files import InvalidSecret, load_secret_files
from serving import log_format
from serving.asgi.auth import InvalidKeys, build_keyring
from serving.settings import Settings, describe_errors
from serving.supervisor import describe_port_error, serve

if __name__ == "__main__":
    log_format.configure_logging()
    try:
        load_secret_files(os.environ)
        settings = Settings.from_environment(os.environ)
    except ValidationError as error:
        for line in describe_errors(error):
            print(f"forecaster: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except InvalidSecret as error:
        print(f"forecaster: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    try:
        build_keyring(settings)  # validated before any process starts; each worker reads the keys for itself
    except InvalidKeys as error:
        print(f"forecaster: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    port_error = describe_port_error(settings)
    if port_error is not None:
        print(f"forecaster: {port_error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    sys.exit(serve(settings))
