"""Bundles to serve, requests to send, and servers in processes of their own, on this machine's loopback alone."""

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
from serving.deployment import slot as slots
from serving.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
CONTEXT, HORIZON = 96, 24
START = "2026-01-01T00:00:00Z"
JSON_HEADERS = {"content-type": "application/json"}
SERVING_COMMAND = (sys.executable, "-m", "serving")


class ServerProcess(NamedTuple):
    """One under way.

    Attributes:
        process: What was started; its children are the workers.
        port: Where it listens.
        began: When it was started.
    """

    process: subprocess.Popen[bytes]
    port: int
    started_at: float

    @property
    def processes(self) -> list[psutil.Process]:
        """All its processes."""
        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes that answer."""
        return [one for one in self.processes if "_bentoml_impl.worker.service" in " ".join(_command_line(one))]


def _command_line(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


def make_histories(count: int, steps: int, *, seed: int = 0) -> np.ndarray:
    """Made-up demand: a day's rhythm and noise."""
    clock, draw = np.arange(steps), np.random.default_rng(seed)
    rhythm = 100 + 20 * np.sin(2 * np.pi * clock / 24)
    return np.round(rhythm + 5 * draw.normal(size=(count, steps)), 3)


def make_request(count: int, steps: int, *, horizon: int = HORIZON) -> dict[str, Any]:
    """A request in rows."""
    series = [
        {"id": f"series_{number}", "start": START, "freq": "h", "y": row.tolist()}
        for number, row in enumerate(make_histories(count, steps))
    ]
    return {"series": series, "horizon": horizon}


def write_bundle(folder: Path, *, seed: int = 1, **fields: Any) -> str:
    """An untrained LSTM of 64 units, which takes as long as a trained one; answers the digest."""
    from forecaster.data.encoding import EMPTY_ENCODING
    from forecaster.model.regressor import build_network
    from forecaster.prediction.fitted_model import FittedModel

    network = NetworkSpec(cell="lstm", hidden=64)
    spec = Spec.parse({"name": "demand", "context": CONTEXT, "horizon": HORIZON, "network": network} | fields, where="")
    learned = FittedModel(
        spec, "h", 24, pd.Timestamp("2026-01-01"), EMPTY_ENCODING, build_network(spec, seed=seed, season=24)
    )
    return artifact.save_bundle(learned, folder, card="# Made for a benchmark\n")


def publish_bundle(slot: Path, *, version: str = "1", seed: int = 1, damaged: bool = False, **fields: Any) -> str:
    """Puts a bundle into a slot as a follower does, and answers its digest; a bad one has weights unknown to its manifest."""
    with slots.staging(slot) as draft:
        digest = write_bundle(draft / "bundle", seed=seed, **fields)
        if damaged:
            (draft / "bundle" / "weights.safetensors").write_bytes(b"spoilt")
        slots.publish(slot, draft / "bundle", slots.Release(name="demand", version=version, digest=digest))
    return digest


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_service(settings: Settings, log: Path) -> Iterator[ServerProcess]:
    """`python -m serving`, ready; ended afterwards."""
    with start_server([*SERVING_COMMAND], settings.port, settings.to_environment(), log) as server:
        wait_until_ready(server, "/readyz")
        yield server


@contextmanager
def run_raw_server(bundle: Path, log: Path) -> Iterator[ServerProcess]:
    """The raw route, ready."""
    port = free_port()
    with start_server(
        _uvicorn_command("benchmarks.service.raw_route:app", port), port, {BUNDLE_VARIABLE: str(bundle)}, log
    ) as server:
        wait_until_ready(server, "/")
        yield server


@contextmanager
def run_mlflow_server(model: Path, log: Path) -> Iterator[ServerProcess]:
    """MLflow's scoring server as its own command starts it, without an environment of its own; ready."""
    port, environment = free_port(), {"__pyfunc_model_path__": str(model), "MLFLOW_DISABLE_TELEMETRY": "true"}
    with start_server(_uvicorn_command("mlflow.pyfunc.scoring_server.app:app", port), port, environment, log) as server:
        wait_until_ready(server, "/ping")
        yield server


def _uvicorn_command(app: str, port: int) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--no-access-log"]
    return [sys.executable, "-m", "uvicorn", app, *options]


@contextmanager
def start_server(command: list[str], port: int, environment: Mapping[str, str], log: Path) -> Iterator[ServerProcess]:
    """A server that may not be ready yet; it and its children are ended afterwards."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("BENTOML", "FORECASTER"))}
    whole = inherited | dict(environment) | {"PYTHONPATH": str(ROOT)}
    with log.open("ab") as sink:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=whole, cwd=log.parent, stdout=sink, stderr=sink)
        server = ServerProcess(process, port, began)
        try:
            yield server
        finally:
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            for one in below:  # none is left, unless something went wrong
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait(30)


def http_get(port: int, path: str, *, timeout_s: float = 30.0) -> tuple[int, bytes]:
    """The status and the body; 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def wait_until_ready(server: ServerProcess, path: str, *, seconds: float = 120.0) -> float:
    """Seconds from its start until it answers 200; raises TimeoutError if it does not."""
    while http_get(server.port, path)[0] != 200:
        if server.process.poll() is not None or time.perf_counter() - server.started_at > seconds:
            raise TimeoutError(f"Expected {path} to answer 200 within {seconds} s; it did not. See the server's log.")
        time.sleep(0.01)
    return time.perf_counter() - server.started_at


def start_load(job: LoadJob) -> subprocess.Popen[str]:
    """A load in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.service.load_generator"]
    child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    child.stdin.write(json.dumps(asdict(job)))
    child.stdin.close()
    return child


def finish_load(child: subprocess.Popen[str]) -> LoadResult:
    """What it was told."""
    assert child.stdout is not None
    text = child.stdout.read()
    if child.wait() != 0:
        raise RuntimeError("Expected the load to end; it failed. Its error stands above.")
    told = LoadResult(**json.loads(text))
    told.statuses, told.bodies = Counter(told.statuses), Counter(told.bodies)
    return told


def run_load(job: LoadJob) -> LoadResult:
    """The same from end to end."""
    return finish_load(start_load(job))
