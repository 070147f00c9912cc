"""Runs the service of the demo on a free port, and requests forecasts over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from forecaster.errors import ForecasterError
from forecaster.frequency.timestamps import format_timestamp
from forecaster.series import Series
from pipelines.settings import SERVING_PREFIX, Root, build_serving_environment

START_TIMEOUT_S = 120.0  # until the service is ready


@contextmanager
def run_service(root: Root, model: str) -> Iterator[str]:
    """Runs the service on a free port of this machine; yields its URL, and stops it when the block ends."""
    port = _find_free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(SERVING_PREFIX)}
    environment = build_serving_environment(environ, root, model=model, host="127.0.0.1", port=port)
    log = root.path / "demo" / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "serving"], env=environment, stdout=output, stderr=output)
        try:
            _wait_until_ready(process, url, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ForecasterError(
                f"Expected the service to start; it exited with code {process.returncode}. See {log}."
            )
        try:
            with urlopen(f"{url}/readyz", timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise ForecasterError(
        f"Expected the service to be ready within {START_TIMEOUT_S:.0f} seconds; it was not. See {log}."
    )


def request_forecasts(url: str, histories: Sequence[Series], horizon: int, levels: Sequence[float]) -> dict[str, Any]:
    """Requests forecasts with quantiles; returns the response."""
    series = [
        {
            "id": history.id,
            "start": format_timestamp(history.start),
            "freq": history.freq,
            "y": history.y.tolist(),
        }
        for history in histories
    ]
    body = json.dumps({"series": series, "horizon": horizon, "levels": list(levels)}).encode()
    request = Request(f"{url}/v1/forecast", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:
        return json.load(response)  # type: ignore[no-any-return]


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
