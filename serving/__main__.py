"""`python -m serving`: the server and its follower, set up by FORECASTER_SERVING_*."""

from __future__ import annotations

import os
import sys

from pydantic import ValidationError

from serving import logs
from serving.launch import serve
from serving.settings import PREFIX, Settings

if __name__ == "__main__":
    logs.configure()
    try:
        settings = Settings.read(os.environ)
    except ValidationError as error:
        for fault in error.errors():
            name = f"{PREFIX}{'.'.join(map(str, fault['loc'])).upper()}"
            print(f"forecaster: {name}: {fault['msg']}; found {fault['input']!r}. Correct it.", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    sys.exit(serve(settings))
