"""Runs the service for minutes under load, while its model changes and workers are killed; reports memory and wrong answers.

    PYTHONPATH=. .venv/bin/python benchmarks/service/soak.py                  # 5 minutes
    PYTHONPATH=. .venv/bin/python benchmarks/service/soak.py --minutes 60

Every response is compared with the forecast of the library by the model that the response names; every third model is damaged,
and must never respond. One of two workers is killed repeatedly; the memory of the other is measured, because it lives through the
whole run. Writes results/soak.md, and exits with 1 if an answer was wrong.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil

from benchmarks.service import servers
from benchmarks.service.servers import CONTEXT, HORIZON, JSON_HEADERS, START, make_histories
from forecaster.bundle import artifact
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Series
from serving.settings import Settings

RESULTS = Path(__file__).resolve().parents[1] / "results" / "soak.md"
MODEL_COUNT = 4  # valid models, which are published in turn
RELOAD_S, KILL_S, SAMPLE_S = 5.0, 20.0, 1.0  # between model changes, kills and measurements of memory
WARM_UP_SHARE = 0.25  # of the run, whose memory is not part of the slope
CLIENT_COUNT, PAUSE_S = 4, 0.02
SERIES_COUNTS = (1, 1, 1, 20)  # of the requests of a client, in turn
TOLERANCE = 1e-4  # relative; responses have a limited number of digits


class Sample(NamedTuple):
    """Resident memory of a process in MB, and when it was measured, in seconds since the start."""

    seconds: float
    megabytes: float


class Soak:
    """What the clients of one run count."""

    def __init__(self, port: int, expected: dict[str, np.ndarray]) -> None:
        self.port = port
        self.expected = expected  # "series horizon" by digest of the model
        self.outcomes: Counter[str] = Counter()
        self.lock, self.done = threading.Lock(), threading.Event()

    def run_client(self, number: int) -> None:
        """Sends requests until the end of the run; connections are renewed when they are lost."""
        turn, connection = number, http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self.done.wait(PAUSE_S):
            count = SERIES_COUNTS[turn % len(SERIES_COUNTS)]
            turn += 1
            try:
                connection.request("POST", "/v1/forecast", body=_encode_request(count), headers=JSON_HEADERS)
                response = connection.getresponse()
                outcome = self._judge(response.status, response.read(), count)
            except (OSError, http.client.HTTPException):
                outcome = "lost"
                connection.close()
            with self.lock:
                self.outcomes[outcome] += 1
        connection.close()

    def _judge(self, status: int, body: bytes, count: int) -> str:
        if status != 200:
            return f"status {status}"
        content = json.loads(body)
        expected = self.expected.get(content["model"]["digest"])
        if expected is None:
            return "wrong"  # a damaged model
        means = np.array([forecast["mean"] for forecast in content["forecasts"]])
        is_right = means.shape == (count, HORIZON) and np.allclose(
            means, expected[:count], rtol=TOLERANCE, atol=TOLERANCE
        )
        return "right" if is_right else "wrong"


def _encode_request(count: int) -> bytes:
    series = [
        {"id": f"series_{number}", "start": START, "freq": "h", "y": row.tolist()}
        for number, row in enumerate(make_histories(max(SERIES_COUNTS), CONTEXT)[:count])
    ]
    return json.dumps({"series": series, "horizon": HORIZON}).encode()


def write_models(folder: Path) -> dict[str, np.ndarray]:
    """Writes the valid models; returns the library's forecasts of all series by the digest of the model."""
    histories = [
        Series(f"series_{number}", pd.Timestamp(START).tz_localize(None), "h", row)
        for number, row in enumerate(make_histories(max(SERIES_COUNTS), CONTEXT))
    ]
    expected = {}
    for number in range(MODEL_COUNT):
        digest = servers.write_bundle(folder / str(number), seed=10 + number)
        outcomes = Predictor(artifact.load_bundle(folder / str(number))).forecast_batch(histories, HORIZON)
        assert all(isinstance(outcome, Forecast) for outcome in outcomes)
        expected[digest] = np.array([outcome.mean for outcome in outcomes if isinstance(outcome, Forecast)])
    return expected


def change_models(slot: Path, stop: threading.Event, counts: Counter[str]) -> None:
    """Publishes a model every few seconds; every third is damaged, and has a network of its own."""
    number = 0
    while not stop.wait(RELOAD_S):
        number += 1
        damaged = number % 3 == 0
        seed = 100 + number if damaged else 10 + number % MODEL_COUNT
        servers.publish_bundle(slot, version=str(number), seed=seed, damaged=damaged)
        counts["damaged models" if damaged else "model changes"] += 1
        releases = sorted((slot / "releases").iterdir(), key=lambda path: path.stat().st_mtime)
        for old in releases[: -3 - MODEL_COUNT]:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def running_threads(threads: list[threading.Thread], *events: threading.Event) -> Iterator[None]:
    """Runs threads during the block, and sets the events that end them."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for event in events:
            event.set()
        for thread in threads:
            thread.join(60)


def fit_slope(samples: list[Sample], *, after_s: float) -> float:
    """Returns the growth of memory in MB per minute, by least squares."""
    points = np.array([sample for sample in samples if sample.seconds >= after_s])
    return float(60 * np.polyfit(points[:, 0], points[:, 1], 1)[0]) if len(points) > 2 else float("nan")


def measure_soak(folder: Path, seconds: float) -> tuple[list[str], int]:
    """Runs the service for so long; returns the lines of the report, and the number of wrong answers."""
    slot, counts, memory = folder / "slot", Counter[str](), list[Sample]()
    expected = write_models(folder / "models")
    servers.publish_bundle(slot, version="0", seed=10)
    settings = Settings(slot=slot, port=servers.free_port(), workers=2, reload_s=0.2, retry_s=1.0)
    with servers.run_service(settings, folder / "soak.log") as server:
        while len(server.workers) < 2:
            time.sleep(0.1)
        survivor = server.workers[0]
        soak, stop = Soak(settings.port, expected), threading.Event()
        threads = [threading.Thread(target=soak.run_client, args=(number,)) for number in range(CLIENT_COUNT)]
        threads.append(threading.Thread(target=change_models, args=(slot, stop, counts)))
        with running_threads(threads, stop, soak.done):
            started, killed_at = time.perf_counter(), 0.0
            while (elapsed := time.perf_counter() - started) < seconds:
                memory.append(Sample(elapsed, survivor.memory_info().rss / 2**20))
                victims = [worker for worker in server.workers if worker.pid != survivor.pid]
                if elapsed - killed_at > KILL_S and victims and elapsed < seconds - KILL_S:
                    killed_at = elapsed
                    with suppress(psutil.NoSuchProcess):
                        victims[0].send_signal(signal.SIGKILL)
                        counts["killed workers"] += 1
                time.sleep(SAMPLE_S)
        lived = survivor.is_running()
    total, wrong = soak.outcomes.total(), soak.outcomes["wrong"]
    other = {name: count for name, count in soak.outcomes.items() if name not in ("right", "wrong", "lost")}
    slope = fit_slope(memory, after_s=WARM_UP_SHARE * seconds)
    lines = [
        f"## {seconds / 60:g} minutes, {CLIENT_COUNT} clients, {counts['model changes']} model changes, "
        f"{counts['damaged models']} damaged models, {counts['killed workers']} killed workers",
        "",
        "| | | target |",
        "|---|---|---|",
        f"| responses | {total - soak.outcomes['lost']} | |",
        f"| wrong answers | {wrong} | 0 |",
        f"| connections lost with a killed worker | {soak.outcomes['lost']} | |",
        f"| other statuses | {', '.join(f'{name}: {count}' for name, count in sorted(other.items())) or 'none'} | none |",
        f"| the worker that was not killed lived through the run | {'yes' if lived else 'no'} | yes |",
        f"| its memory at start, after the first quarter, at the end, MB | {_describe_memory(memory, seconds)} | |",
        f"| growth of its memory after the first quarter, MB/min | {slope:.2f} | |",
    ]
    return lines, wrong


def _describe_memory(memory: list[Sample], seconds: float) -> str:
    warm = next((sample for sample in memory if sample.seconds >= WARM_UP_SHARE * seconds), memory[-1])
    return ", ".join(f"{sample.megabytes:.0f}" for sample in (memory[0], warm, memory[-1]))


def main() -> int:
    """Runs the soak, prints and writes the report."""
    parser = argparse.ArgumentParser(description="Runs the service under load while models change and workers die.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    today = datetime.datetime.now(datetime.UTC).date()
    with tempfile.TemporaryDirectory(prefix="forecaster-soak-") as folder:
        lines, wrong = measure_soak(Path(folder), 60 * options.minutes)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    conditions = f"{machine}, {today}; load averages before: {load}."
    command = f"`PYTHONPATH=. python benchmarks/service/soak.py --minutes {options.minutes:g}`"
    text = "\n".join(["# Soak", "", f"{command}, {conditions}", "", *lines]) + "\n"
    print(text)
    options.out.write_text(text, encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
