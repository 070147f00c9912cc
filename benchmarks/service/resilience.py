"""Behaviour of the service under overload, model changes, killed workers and shutdown."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.service import servers
from benchmarks.service.load_generator import LoadJob
from benchmarks.service.performance import RunLength, encode_arrow
from benchmarks.service.servers import JSON_HEADERS, ServerProcess, make_histories, make_request
from serving.settings import Settings

CLIENT_COUNT = 50
SMALL_RATE = 10.0  # small requests a second during the overload
REQUEST_RATE = 20.0  # requests a second while models change
_PROBE_INTERVAL_S = 0.05  # between probes of /livez


def measure_overload(folder: Path, length: RunLength) -> list[str]:
    """Sends the largest legal requests from fifty clients at once, with small ones and probes of /livez between them."""
    settings = Settings(slot=folder / "slot", port=servers.free_port())
    small, steps = folder / "one.json", settings.max_values // settings.max_series
    small.write_text(json.dumps(make_request(1, servers.CONTEXT)))
    largest = _write_largest_requests(folder, settings, steps)
    with servers.run_service(settings, folder / "overload.log") as server:
        for body, headers in [(small, JSON_HEADERS), *largest]:  # all threads exist, and all formats are imported
            servers.run_load(LoadJob(server.port, "/v1/forecast", str(body), headers, 4, count=8))
        [worker] = server.workers
        threads = worker.num_threads()
        with _probe_liveness(server) as probe_latencies:
            clients = CLIENT_COUNT // len(largest)
            children = [
                servers.start_load(
                    LoadJob(server.port, "/v1/forecast", str(body), headers, clients, length.overload_s, timeout_s=1e9)
                )
                for body, headers in largest
            ]
            job = LoadJob(
                server.port, "/v1/forecast", str(small), JSON_HEADERS, seconds=length.overload_s, rate=SMALL_RATE
            )
            during = servers.run_load(job)
            for child in children:
                child.kill()  # the clients disconnect
                child.wait()
            after = servers.run_load(LoadJob(server.port, "/v1/forecast", str(small), JSON_HEADERS, count=1))
        time.sleep(1.0)
        extra_threads = worker.num_threads() - threads
        resident_mb = worker.memory_info().rss / 2**20
    failed = during.lost + during.statuses.total() - during.statuses["200"]
    sizes = " and ".join(f"{body.stat().st_size / 1e6:.0f} MB" for body, _ in largest)
    return [
        f"## {CLIENT_COUNT} clients with the largest legal requests ({sizes}, {settings.max_series} series of {steps} steps, "
        f"{settings.max_horizon} ahead, as JSON and as Arrow) for {length.overload_s:g} s",
        "",
        "| | | target |",
        "|---|---|---|",
        f"| {len(during.latencies)} small requests during the load, {SMALL_RATE:g} a second: failed | {failed} | 0 |",
        f"| the same: p50, ms | {_quantile_ms(during.latencies, 0.5):.0f} | |",
        f"| the same: p99, ms | {_quantile_ms(during.latencies, 0.99):.0f} | 1000 |",
        f"| a small request right after: ms | {_quantile_ms(after.latencies, 1.0):.0f} | 1000 |",
        f"| {len(probe_latencies)} probes of /livez during the load: p99, ms | {_quantile_ms(probe_latencies, 0.99):.0f} | 100 |",
        f"| the same: slowest, ms | {_quantile_ms(probe_latencies, 1.0):.0f} | |",
        f"| threads left behind | {extra_threads} | 0 |",
        f"| resident memory afterwards, MB | {resident_mb:.0f} | |",
    ]


def _write_largest_requests(folder: Path, settings: Settings, steps: int) -> list[tuple[Path, dict[str, str]]]:
    """Writes the requests with the largest input, rollout and output that the limits allow together, with their headers."""
    request = make_request(settings.max_series, steps, horizon=settings.max_horizon)
    for series in request["series"]:
        series["y"] = [round(abs(value)) % 10 for value in series["y"]]  # keeps the body below the limit of JSON
    as_json, as_arrow = folder / "largest.json", folder / "largest.arrow"
    as_json.write_text(json.dumps(request, separators=(",", ":")))
    as_arrow.write_bytes(encode_arrow(make_histories(settings.max_series, steps), horizon=settings.max_horizon))
    return [(as_json, JSON_HEADERS), (as_arrow, {"content-type": "application/vnd.apache.arrow.stream"})]


def _quantile_ms(latencies: Sequence[float], level: float) -> float:
    """Returns a quantile of latencies in milliseconds; infinity without any."""
    ordered = sorted(latencies)
    return 1000 * ordered[int(level * (len(ordered) - 1))] if ordered else float("inf")


@contextmanager
def _probe_liveness(server: ServerProcess) -> Iterator[list[float]]:
    """Probes /livez repeatedly; yields the list of response times in seconds."""
    latencies: list[float] = []
    done = threading.Event()

    def probe() -> None:
        while not done.wait(_PROBE_INTERVAL_S):
            started = time.perf_counter()
            status, _ = servers.http_get(server.port, "/livez")
            latencies.append(time.perf_counter() - started if status == 200 else float("inf"))

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield latencies
    finally:
        done.set()
        thread.join()


def measure_model_changes(folder: Path, length: RunLength) -> list[str]:
    """Changes the model under load, every third time to a damaged bundle."""
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
        child, valid_versions = servers.start_load(job), {"0"}
        time.sleep(pause)
        for number in range(1, length.model_changes + 1):
            damaged = number % 3 == 0
            started = time.perf_counter()
            # A known bundle would be reused, so each damaged one has its own network.
            seed = 100 + number if damaged else 2 + number % 2
            servers.publish_bundle(slot, version=str(number), seed=seed, damaged=damaged)
            valid_versions |= set() if damaged else {str(number)}
            time.sleep(max(0.0, pause - (time.perf_counter() - started)))
        result = servers.finish_load(child)
    failed = result.lost + sum(count for status, count in result.statuses.items() if status != "200")
    responses = [(json.loads(text), count) for text, count in result.bodies.items()]
    means: dict[str, set[str]] = {}
    for response, _ in responses:
        means.setdefault(response["model"]["digest"], set()).add(json.dumps(response["forecasts"][0]["mean"]))
    mixed = sum(count for response, count in responses if response["model"]["version"] not in valid_versions)
    mixed += sum(len(model_means) - 1 for model_means in means.values())
    versions = {response["model"]["version"] for response, _ in responses}
    models_differ = len({next(iter(model_means)) for model_means in means.values()}) == len(means)
    return [
        f"## {length.model_changes} model changes, {length.model_changes // 3} of them to damaged bundles, at "
        f"{REQUEST_RATE:g} requests/s",
        "",
        "| | | target |",
        "|---|---|---|",
        f"| responses | {len(result.latencies)} | |",
        f"| failed | {failed} | 0 |",
        f"| mixed: from a damaged bundle, or different responses from one model | {mixed} | 0 |",
        f"| versions that responded (of {len(valid_versions)} valid ones) | {len(versions)} | |",
        f"| different models respond differently | {'yes' if models_differ else 'no'} | yes |",
    ]


def measure_worker_failure(folder: Path, length: RunLength) -> list[str]:
    """Kills one of two workers under load, and stops a server while it processes eight requests."""
    body, heavy = folder / "one.json", folder / "heavy.json"
    body.write_text(json.dumps(make_request(1, servers.CONTEXT)))
    heavy.write_text(json.dumps(make_request(400, 500, horizon=500)))
    settings = Settings(slot=folder / "slot", port=servers.free_port(), workers=2)
    seconds = 4 * length.seconds + 10
    with servers.run_service(settings, folder / "deaths.log") as server:
        while len(server.workers) < 2:
            time.sleep(0.05)
        time.sleep(3)  # until the second worker is ready too
        child = servers.start_load(LoadJob(server.port, "/v1/forecast", str(body), JSON_HEADERS, 8, seconds))
        time.sleep(2)
        victim = server.workers[0]
        victim.send_signal(signal.SIGKILL)
        recovery_s = _recovery_seconds(server, victim)
        result = servers.finish_load(child)
        total = result.statuses.total() + result.lost
        success_share = result.statuses["200"] / total
        gaps = [
            later - earlier
            for earlier, later in zip(sorted(result.finished_at), sorted(result.finished_at)[1:], strict=False)
        ]
    in_progress, completed, code = _measure_shutdown(folder, heavy)
    return [
        "## Killed worker, and shutdown under load",
        "",
        "| | | target |",
        "|---|---|---|",
        f"| kill -9 of one of two workers under load: successful | {100 * success_share:.3f} % of {total} | 99 % |",
        f"| requests lost | {result.lost} | |",
        f"| longest time without a response, s | {max(gaps):.2f} | |",
        f"| replacement worker serves after s | {recovery_s:.1f} | 15 |",
        f"| SIGTERM with {in_progress} requests in progress: successful | {completed} | {in_progress} |",
        f"| exit code | {code} | 0 |",
    ]


def _recovery_seconds(server: ServerProcess, killed: psutil.Process) -> float:
    """Returns the seconds until two workers serve again: the new one accepts connections and has loaded the model."""
    started = time.perf_counter()
    while time.perf_counter() - started < 60:
        workers = [worker for worker in server.workers if worker.pid != killed.pid]
        if len(workers) == 2 and _all_workers_ready(server, workers):
            break
        time.sleep(0.1)
    return time.perf_counter() - started


def _all_workers_ready(server: ServerProcess, workers: list[psutil.Process]) -> bool:
    """Returns whether several new connections are ready and each worker received one of them."""
    connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(8)]
    try:
        for connection in connections:
            connection.request("GET", "/readyz")
        ready = all(connection.getresponse().status == 200 for connection in connections)
        client_ports = {connection.sock.getsockname()[1] for connection in connections if connection.sock is not None}
        peer_ports = [{peer.raddr.port for peer in worker.net_connections("tcp") if peer.raddr} for worker in workers]
        return ready and all(ports & client_ports for ports in peer_ports)
    except (OSError, psutil.Error):
        return False
    finally:
        for connection in connections:
            connection.close()


def _measure_shutdown(folder: Path, heavy: Path) -> tuple[int, int, int]:
    """Returns the number of requests in progress at SIGTERM, the number of successful responses, and the exit code."""
    settings, count = Settings(slot=folder / "slot", port=servers.free_port(), grace_s=30), 8
    with servers.run_service(settings, folder / "stopped.log") as server:
        child = servers.start_load(LoadJob(server.port, "/v1/forecast", str(heavy), JSON_HEADERS, count, count=count))
        _wait_for_requests(server, count)
        server.process.send_signal(signal.SIGTERM)
        result = servers.finish_load(child)
        return count, result.statuses["200"], server.process.wait(60)


def _wait_for_requests(server: ServerProcess, count: int) -> None:
    """Waits until `count` client connections are established and their requests are read."""
    started = time.perf_counter()
    while time.perf_counter() - started < 30:
        connections: list[Any] = [
            connection for worker in server.workers for connection in worker.net_connections("tcp")
        ]
        if sum(connection.status == psutil.CONN_ESTABLISHED for connection in connections) >= count:
            break
        time.sleep(0.01)
    time.sleep(0.3)
