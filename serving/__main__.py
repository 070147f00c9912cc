"""`python -m serving`: the server and its follower, set up by FORECASTER_SERVING_*."""

from __future__ import annotations

import os
import sys

from serving import logs
from serving.launch import serve
from serving.settings import Settings

if __name__ == "__main__":
    logs.configure()
    sys.exit(serve(Settings.read(os.environ)))
