"""What becomes of it in trouble: too much work, models that come and go, workers that die, and an end while it works."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.service import servers
from benchmarks.service.load_generator import LoadJob
from benchmarks.service.performance import RunLength
from benchmarks.service.servers import JSON_HEADERS, ServerProcess, make_request
from serving.settings import Settings

CLIENT_COUNT = 50
REQUEST_RATE = 20.0  # requests a second while models change
_PROBE_INTERVAL_S = 0.05  # between questions to /livez


def measure_overload(folder: Path, length: RunLength) -> list[str]:
    """The worst legal request from fifty clients at once; then a small one; and /livez all the while."""
    settings = Settings(slot=folder / "slot", port=servers.free_port())
    worst, small = folder / "worst.json", folder / "one.json"
    # As much to read, to roll and to write as the limits allow at once.
    steps = settings.max_values // settings.max_series
    asked = make_request(settings.max_series, steps, horizon=settings.max_horizon)
    for one in asked["series"]:
        one["y"] = [round(value, 1) for value in one["y"]]  # or the body would be too large
    worst.write_text(json.dumps(asked, separators=(",", ":")))
    small.write_text(json.dumps(make_request(1, servers.CONTEXT)))
    with servers.run_service(settings, folder / "overload.log") as server:
        servers.run_load(LoadJob(server.port, "/v1/forecast", str(small), JSON_HEADERS, 4, count=50))
        [worker] = server.workers
        threads = worker.num_threads()
        with _probe_liveness(server) as beats:
            job = LoadJob(
                server.port, "/v1/forecast", str(worst), JSON_HEADERS, CLIENT_COUNT, length.overload_s, timeout_s=1e9
            )
            child = servers.start_load(job)
            time.sleep(length.overload_s)
            child.kill()  # the clients leave, as clients do
            child.wait()
            began = time.perf_counter()
            told = servers.run_load(LoadJob(server.port, "/v1/forecast", str(small), JSON_HEADERS, count=1))
            waited = time.perf_counter() - began
        time.sleep(1.0)
        left = worker.num_threads() - threads
        alone = told.latencies[0] if told.latencies else float("inf")
        late = sorted(beats)
    return [
        f"## {CLIENT_COUNT} clients with the worst legal request ({worst.stat().st_size / 1e6:.0f} MB, "
        f"{settings.max_series} series of {steps} steps, {settings.max_horizon} ahead) for {length.overload_s:g} s",
        "",
        "| | | aim |",
        "|---|---|---|",
        f"| a small request right after: status | {' '.join(told.statuses) or 'none'} | 200 |",
        f"| the same: s (with a new client process: {waited:.2f}) | {alone:.2f} | 1 |",
        f"| /livez meanwhile: slowest of {len(late)}, ms | {late[-1] * 1000:.0f} | 100 |",
        f"| the same: p99, ms | {late[int(0.99 * (len(late) - 1))] * 1000:.0f} | |",
        f"| threads left behind | {left} | 0 |",
    ]


@contextmanager
def _probe_liveness(server: ServerProcess) -> Iterator[list[float]]:
    """Asks /livez over and over; the seconds of each."""
    took: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(_PROBE_INTERVAL_S):
            began = time.perf_counter()
            status, _ = servers.http_get(server.port, "/livez")
            took.append(time.perf_counter() - began if status == 200 else float("inf"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        done.set()
        thread.join()


def measure_model_changes(folder: Path, length: RunLength) -> list[str]:
    """The model changes while it answers, every third time to a bundle that is bad."""
    slot, body = folder / "slot that flips", folder / "one.json"
    body.write_text(json.dumps(make_request(1, servers.CONTEXT)))
    servers.publish_bundle(slot, version="0")
    settings = Settings(slot=slot, port=servers.free_port(), reload_s=0.1, retry_s=0.2)
    pause = 1.0
    with servers.run_service(settings, folder / "flips.log") as server:
        job = LoadJob(
            server.port,
            "/v1/forecast",
            str(body),
            JSON_HEADERS,
            seconds=pause * (length.model_changes + 2),
            rate=REQUEST_RATE,
            count_bodies=True,
        )
        child, good = servers.start_load(job), {"0"}
        time.sleep(pause)
        for number in range(1, length.model_changes + 1):
            bad = number % 3 == 0
            began = time.perf_counter()
            # A bundle that was there is taken for what it was; so each bad one is of a network of its own.
            seed = 100 + number if bad else 2 + number % 2
            servers.publish_bundle(slot, version=str(number), seed=seed, damaged=bad)
            good |= set() if bad else {str(number)}
            time.sleep(max(0.0, pause - (time.perf_counter() - began)))
        told = servers.finish_load(child)
    failed = told.lost + sum(count for status, count in told.statuses.items() if status != "200")
    answers = [(json.loads(text), count) for text, count in told.bodies.items()]
    means: dict[str, set[str]] = {}
    for answer, _ in answers:
        means.setdefault(answer["model"]["digest"], set()).add(json.dumps(answer["forecasts"][0]["mean"]))
    mixed = sum(count for answer, count in answers if answer["model"]["version"] not in good)
    mixed += sum(len(different) - 1 for different in means.values())
    seen = {answer["model"]["version"] for answer, _ in answers}
    told_apart = len({next(iter(different)) for different in means.values()}) == len(means)
    return [
        f"## {length.model_changes} changes of the model, {length.model_changes // 3} of them to bad bundles, at {REQUEST_RATE:g} requests/s",
        "",
        "| | | aim |",
        "|---|---|---|",
        f"| answers | {len(told.latencies)} | |",
        f"| failed | {failed} | 0 |",
        f"| mixed: of a bad bundle, or two answers from one model | {mixed} | 0 |",
        f"| versions that answered (of {len(good)} good ones) | {len(seen)} | |",
        f"| different models answer differently | {'yes' if told_apart else 'no'} | yes |",
    ]


def measure_worker_failure(folder: Path, length: RunLength) -> list[str]:
    """A worker of two is killed under load; and a server is told to stop while it answers eight."""
    body, heavy = folder / "one.json", folder / "heavy.json"
    body.write_text(json.dumps(make_request(1, servers.CONTEXT)))
    heavy.write_text(json.dumps(make_request(400, 500, horizon=500)))
    settings = Settings(slot=folder / "slot", port=servers.free_port(), workers=2)
    seconds = 4 * length.seconds + 10
    with servers.run_service(settings, folder / "deaths.log") as server:
        while len(server.workers) < 2:
            time.sleep(0.05)
        time.sleep(3)  # until the second is ready too
        child = servers.start_load(LoadJob(server.port, "/v1/forecast", str(body), JSON_HEADERS, 8, seconds))
        time.sleep(2)
        victim = server.workers[0]
        victim.send_signal(signal.SIGKILL)
        back = _recovery_seconds(server, victim)
        told = servers.finish_load(child)
        answered = told.statuses["200"] / (told.statuses.total() + told.lost)
        gaps = [
            later - earlier
            for earlier, later in zip(sorted(told.finished_at), sorted(told.finished_at)[1:], strict=False)
        ]
    asked, ended, code = _measure_shutdown(folder, heavy)
    return [
        "## A worker dies, and an end while it works",
        "",
        "| | | aim |",
        "|---|---|---|",
        f"| kill -9 of one of two workers under load: answered | {100 * answered:.3f} % of {told.statuses.total() + told.lost}"
        " | 99 % |",
        f"| requests lost | {told.lost} | |",
        f"| longest time without any answer, s | {max(gaps):.2f} | |",
        f"| a worker in its place answers after s | {back:.1f} | 15 |",
        f"| SIGTERM with {asked} requests under way: answered | {ended} | {asked} |",
        f"| exit code | {code} | 0 |",
    ]


def _recovery_seconds(server: ServerProcess, killed: psutil.Process) -> float:
    """Seconds until two workers serve again: the new one answers connections, and has taken the model."""
    began = time.perf_counter()
    while time.perf_counter() - began < 60:
        fresh = [one for one in server.workers if one.pid != killed.pid]
        if len(fresh) == 2 and _all_workers_ready(server, fresh):
            break
        time.sleep(0.1)
    return time.perf_counter() - began


def _all_workers_ready(server: ServerProcess, workers: list[psutil.Process]) -> bool:
    """Whether some new connections are ready, each of the workers having got one of them."""
    made = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(8)]
    try:
        for one in made:
            one.request("GET", "/readyz")
        ready = all(one.getresponse().status == 200 for one in made)
        ours = {one.sock.getsockname()[1] for one in made if one.sock is not None}
        theirs = [{at.raddr.port for at in one.net_connections("tcp") if at.raddr} for one in workers]
        return ready and all(ports & ours for ports in theirs)
    except (OSError, psutil.Error):
        return False
    finally:
        for one in made:
            one.close()


def _measure_shutdown(folder: Path, heavy: Path) -> tuple[int, int, int]:
    """Requests that were under way when it was told to stop, those that were answered, and its exit code."""
    settings, asked = Settings(slot=folder / "slot", port=servers.free_port(), grace_s=30), 8
    with servers.run_service(settings, folder / "stopped.log") as server:
        child = servers.start_load(LoadJob(server.port, "/v1/forecast", str(heavy), JSON_HEADERS, asked, count=asked))
        _wait_for_requests(server, asked)
        server.process.send_signal(signal.SIGTERM)
        told = servers.finish_load(child)
        return asked, told.statuses["200"], server.process.wait(60)


def _wait_for_requests(server: ServerProcess, count: int) -> None:
    """Until so many connections of clients are there, and their requests were read."""
    began = time.perf_counter()
    while time.perf_counter() - began < 30:
        here: list[Any] = [one for worker in server.workers for one in worker.net_connections("tcp")]
        if sum(one.status == psutil.CONN_ESTABLISHED for one in here) >= count:
            break
        time.sleep(0.01)
    time.sleep(0.3)
