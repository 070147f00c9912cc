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
from benchmarks.service.load_generator import Job
from benchmarks.service.performance import Length
from benchmarks.service.servers import JSON, Server, request
from serving.settings import Settings

CLIENTS = 50
RATE = 20.0  # requests a second while models change
_BEAT_S = 0.05  # between questions to /livez


def overload(work: Path, length: Length) -> list[str]:
    """The worst legal request from fifty clients at once; then a small one; and /livez all the while."""
    settings = Settings(slot=work / "slot", port=servers.free_port())
    worst, small = work / "worst.json", work / "one.json"
    # As much to read, to roll and to write as the limits allow at once.
    steps = settings.max_values // settings.max_series
    asked = request(settings.max_series, steps, horizon=settings.max_horizon)
    for one in asked["series"]:
        one["y"] = [round(value, 1) for value in one["y"]]  # or the body would be too large
    worst.write_text(json.dumps(asked, separators=(",", ":")))
    small.write_text(json.dumps(request(1, servers.CONTEXT)))
    with servers.ours(settings, work / "overload.log") as server:
        servers.load(Job(server.port, "/v1/forecast", str(small), JSON, 4, count=50))
        [worker] = server.workers
        threads = worker.num_threads()
        with _beat(server) as beats:
            job = Job(server.port, "/v1/forecast", str(worst), JSON, CLIENTS, length.overload_s, patience_s=1e9)
            child = servers.begin(job)
            time.sleep(length.overload_s)
            child.kill()  # the clients leave, as clients do
            child.wait()
            began = time.perf_counter()
            told = servers.load(Job(server.port, "/v1/forecast", str(small), JSON, count=1))
            waited = time.perf_counter() - began
        time.sleep(1.0)
        left = worker.num_threads() - threads
        alone = told.took[0] if told.took else float("inf")
        late = sorted(beats)
    return [
        f"## {CLIENTS} clients with the worst legal request ({worst.stat().st_size / 1e6:.0f} MB, "
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
def _beat(server: Server) -> Iterator[list[float]]:
    """Asks /livez over and over; the seconds of each."""
    took: list[float] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(_BEAT_S):
            began = time.perf_counter()
            status, _ = servers.get(server.port, "/livez")
            took.append(time.perf_counter() - began if status == 200 else float("inf"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        done.set()
        thread.join()


def flips(work: Path, length: Length) -> list[str]:
    """The model changes while it answers, every third time to a bundle that is bad."""
    slot, body = work / "slot that flips", work / "one.json"
    body.write_text(json.dumps(request(1, servers.CONTEXT)))
    servers.publish(slot, version="0")
    settings = Settings(slot=slot, port=servers.free_port(), reload_s=0.1, retry_s=0.2)
    pause = 1.0
    with servers.ours(settings, work / "flips.log") as server:
        job = Job(
            server.port, "/v1/forecast", str(body), JSON, seconds=pause * (length.flips + 2), rate=RATE, bodies=True
        )
        child, good = servers.begin(job), {"0"}
        time.sleep(pause)
        for number in range(1, length.flips + 1):
            bad = number % 3 == 0
            began = time.perf_counter()
            # A bundle that was there is taken for what it was; so each bad one is of a network of its own.
            seed = 100 + number if bad else 2 + number % 2
            servers.publish(slot, version=str(number), seed=seed, bad=bad)
            good |= set() if bad else {str(number)}
            time.sleep(max(0.0, pause - (time.perf_counter() - began)))
        told = servers.end(child)
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
        f"## {length.flips} changes of the model, {length.flips // 3} of them to bad bundles, at {RATE:g} requests/s",
        "",
        "| | | aim |",
        "|---|---|---|",
        f"| answers | {len(told.took)} | |",
        f"| failed | {failed} | 0 |",
        f"| mixed: of a bad bundle, or two answers from one model | {mixed} | 0 |",
        f"| versions that answered (of {len(good)} good ones) | {len(seen)} | |",
        f"| different models answer differently | {'yes' if told_apart else 'no'} | yes |",
    ]


def deaths(work: Path, length: Length) -> list[str]:
    """A worker of two is killed under load; and a server is told to stop while it answers eight."""
    body, heavy = work / "one.json", work / "heavy.json"
    body.write_text(json.dumps(request(1, servers.CONTEXT)))
    heavy.write_text(json.dumps(request(400, 500, horizon=500)))
    settings = Settings(slot=work / "slot", port=servers.free_port(), workers=2)
    seconds = 4 * length.seconds + 10
    with servers.ours(settings, work / "deaths.log") as server:
        while len(server.workers) < 2:
            time.sleep(0.05)
        time.sleep(3)  # until the second is ready too
        child = servers.begin(Job(server.port, "/v1/forecast", str(body), JSON, 8, seconds))
        time.sleep(2)
        victim = server.workers[0]
        victim.send_signal(signal.SIGKILL)
        back = _back(server, victim)
        told = servers.end(child)
        answered = told.statuses["200"] / (told.statuses.total() + told.lost)
        gaps = [later - earlier for earlier, later in zip(sorted(told.ended), sorted(told.ended)[1:], strict=False)]
    asked, ended, code = _stopped(work, heavy)
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


def _back(server: Server, victim: psutil.Process) -> float:
    """Seconds until two workers serve again: the new one answers connections, and has taken the model."""
    began = time.perf_counter()
    while time.perf_counter() - began < 60:
        fresh = [one for one in server.workers if one.pid != victim.pid]
        if len(fresh) == 2 and _all_answer(server, fresh):
            break
        time.sleep(0.1)
    return time.perf_counter() - began


def _all_answer(server: Server, workers: list[psutil.Process]) -> bool:
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


def _stopped(work: Path, heavy: Path) -> tuple[int, int, int]:
    """Requests that were under way when it was told to stop, those that were answered, and its exit code."""
    settings, asked = Settings(slot=work / "slot", port=servers.free_port(), grace_s=30), 8
    with servers.ours(settings, work / "stopped.log") as server:
        child = servers.begin(Job(server.port, "/v1/forecast", str(heavy), JSON, asked, count=asked))
        _wait_for_requests(server, asked)
        server.process.send_signal(signal.SIGTERM)
        told = servers.end(child)
        return asked, told.statuses["200"], server.process.wait(60)


def _wait_for_requests(server: Server, count: int) -> None:
    """Until so many connections of clients are there, and their requests were read."""
    began = time.perf_counter()
    while time.perf_counter() - began < 30:
        here: list[Any] = [one for worker in server.workers for one in worker.net_connections("tcp")]
        if sum(one.status == psutil.CONN_ESTABLISHED for one in here) >= count:
            break
        time.sleep(0.01)
    time.sleep(0.3)
