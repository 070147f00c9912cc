"""Bundles to serve, requests to send, and servers in separate processes on the loopback interface."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil

from benchmarks.service.load_generator import LoadJob, LoadResult
from benchmarks.service.raw_route import BUNDLE_VARIABLE
from forecaster.bundle import artifact
from forecaster.spec import NetworkSpec, Spec
from serving.deployment import releases
from serving.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CONTEXT, HORIZON = 96, 24
START = "2026-01-01T00:00:00Z"
JSON_HEADERS = {"content-type": "application/json"}
SERVING_COMMAND = (sys.executable, "-m", "serving")


class ServerProcess(NamedTuple):
    """A running server.

    Attributes:
        process: The started process; its children are the workers.
        port: The port it listens on.
        started_at: When it was started, in seconds of `time.perf_counter`.
    """

    process: subprocess.Popen[bytes]
    port: int
    started_at: float

    @property
    def processes(self) -> list[psutil.Process]:
        """The server process and all its descendants."""
        main_process = psutil.Process(self.process.pid)
        return [main_process, *main_process.children(recursive=True)]

    @property
    def workers(self) -> list[psutil.Process]:
        """The worker processes."""
        return [
            process for process in self.processes if "_bentoml_impl.worker.service" in " ".join(_command_line(process))
        ]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


def make_histories(count: int, steps: int, *, seed: int = 0) -> np.ndarray:
    """Returns synthetic demand: a daily cycle and noise."""
    clock, rng = np.arange(steps), np.random.default_rng(seed)
    cycle = 100 + 20 * np.sin(2 * np.pi * clock / 24)
    return np.round(cycle + 5 * rng.normal(size=(count, steps)), 3)


def make_request(count: int, steps: int, *, horizon: int = HORIZON) -> dict[str, Any]:
    """Returns a request in the row format."""
    series = [
        {"id": f"series_{number}", "start": START, "freq": "h", "y": row.tolist()}
        for number, row in enumerate(make_histories(count, steps))
    ]
    return {"series": series, "horizon": horizon}


def write_bundle(folder: Path, *, seed: int = 1, **fields: Any) -> str:
    """Writes an untrained LSTM of 64 units, which is as slow as a trained one; returns the digest."""
    from forecaster.data.encoding import EMPTY_ENCODING
    from forecaster.model.regressor import build_network
    from forecaster.prediction.fitted_model import FittedModel

    network = NetworkSpec(cell="lstm", hidden=64)
    spec = Spec.parse({"name": "demand", "context": CONTEXT, "horizon": HORIZON, "network": network} | fields, where="")
    model = FittedModel(
        spec, "h", 24, pd.Timestamp("2026-01-01"), EMPTY_ENCODING, build_network(spec, seed=seed, season=24)
    )
    return artifact.save_bundle(model, folder, card="# Made for a benchmark\n")


def publish_bundle(slot: Path, *, version: str = "1", seed: int = 1, damaged: bool = False, **fields: Any) -> str:
    """Publishes a bundle in a slot as a follower does; returns its digest. A damaged bundle does not match its manifest."""
    with releases.staging(slot) as draft:
        digest = write_bundle(draft / "bundle", seed=seed, **fields)
        if damaged:
            (draft / "bundle" / "weights.safetensors").write_bytes(b"damaged")
        releases.publish(slot, draft / "bundle", releases.Release(name="demand", version=version, digest=digest))
    return digest


def free_port() -> int:
    """Returns an unused port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_service(settings: Settings, log: Path) -> Iterator[ServerProcess]:
    """Runs `python -m serving` until the end of the block; yields it ready."""
    with start_server([*SERVING_COMMAND], settings.port, settings.to_environment(), log) as server:
        wait_until_ready(server, "/readyz")
        yield server


@contextmanager
def run_raw_server(bundle: Path, log: Path) -> Iterator[ServerProcess]:
    """Runs the raw route until the end of the block; yields it ready."""
    port = free_port()
    with start_server(
        _uvicorn_command("benchmarks.service.raw_route:app", port), port, {BUNDLE_VARIABLE: str(bundle)}, log
    ) as server:
        wait_until_ready(server, "/")
        yield server


@contextmanager
def run_mlflow_server(model: Path, log: Path) -> Iterator[ServerProcess]:
    """Runs MLflow's scoring server as its command starts it, without an environment; yields it ready."""
    port, environment = free_port(), {"__pyfunc_model_path__": str(model), "MLFLOW_DISABLE_TELEMETRY": "true"}
    with start_server(_uvicorn_command("mlflow.pyfunc.scoring_server.app:app", port), port, environment, log) as server:
        wait_until_ready(server, "/ping")
        yield server


def _uvicorn_command(app: str, port: int) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--no-access-log"]
    return [sys.executable, "-m", "uvicorn", app, *options]


@contextmanager
def start_server(command: list[str], port: int, environment: Mapping[str, str], log: Path) -> Iterator[ServerProcess]:
    """Starts a server, which may not be ready yet; stops it and its children at the end of the block."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("BENTOML", "FORECASTER"))}
    full_environment = inherited | dict(environment) | {"PYTHONPATH": str(ROOT)}
    with log.open("ab") as sink:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=full_environment, cwd=log.parent, stdout=sink, stderr=sink)
        server = ServerProcess(process, port, started)
        try:
            yield server
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            for child in children:  # usually none is left
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait(30)


def http_get(port: int, path: str, *, timeout_s: float = 30.0) -> tuple[int, bytes]:
    """Returns the status and the body; status 0 if there is no response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def wait_until_ready(server: ServerProcess, path: str, *, seconds: float = 120.0) -> float:
    """Returns the seconds from the start until the response is 200; raises TimeoutError if it takes too long."""
    while http_get(server.port, path)[0] != 200:
        if server.process.poll() is not None or time.perf_counter() - server.started_at > seconds:
            raise TimeoutError(
                f"Expected status 200 from {path} within {seconds} s; found none. See the log of the server."
            )
        time.sleep(0.01)
    return time.perf_counter() - server.started_at


def start_load(job: LoadJob) -> subprocess.Popen[str]:
    """Starts a load in a separate process."""
    command = [sys.executable, "-m", "benchmarks.service.load_generator"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    child.stdin.write(json.dumps(asdict(job)))
    child.stdin.close()
    return child


def finish_load(child: subprocess.Popen[str]) -> LoadResult:
    """Waits for the load and returns its result."""
    assert child.stdout is not None
    text = child.stdout.read()
    if child.wait() != 0:
        raise RuntimeError("Expected the load generator to end with exit code 0; it failed. See its error above.")
    result = LoadResult(**json.loads(text))
    result.statuses, result.bodies = Counter(result.statuses), Counter(result.bodies)
    return result


def run_load(job: LoadJob) -> LoadResult:
    """Runs a load and returns its result."""
    return finish_load(start_load(job))
