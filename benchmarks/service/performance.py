"""Speed of one forecast beside a raw route and MLflow's server, start and memory of a worker, and speed of whole panels."""

from __future__ import annotations

import json
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from benchmarks.service import servers
from benchmarks.service.load_generator import LoadJob, LoadResult
from benchmarks.service.servers import HORIZON, JSON_HEADERS, START, make_histories, make_request
from serving.settings import Settings

CONNECTION_COUNTS = (1, 16, 64)


class RunLength(NamedTuple):
    """Length of a run.

    Attributes:
        seconds: Seconds of load at each number of connections, per repetition.
        repeats: Number of repetitions; medians are reported.
        overload_s: Seconds of overload with the worst requests.
        model_changes: Number of model changes.
        with_mlflow: Whether MLflow's server is measured too.
    """

    seconds: float
    repeats: int
    overload_s: float
    model_changes: int
    with_mlflow: bool = True


def measure_one_forecast(folder: Path, length: RunLength) -> list[str]:
    """Measures requests per second and latency of our service and the other servers, alternating within one run."""
    body, frame = folder / "one.json", folder / "frame.json"
    body.write_text(json.dumps(make_request(1, servers.CONTEXT)))
    values = make_histories(1, servers.CONTEXT)
    columns = [f"y{step}" for step in range(values.shape[1])]
    frame.write_text(json.dumps({"dataframe_split": {"columns": columns, "data": values.tolist()}}))
    slot = folder / "slot"
    results_by_case: dict[tuple[str, int], list[LoadResult]] = {}
    with ExitStack() as stack:
        settings = Settings(slot=slot, port=servers.free_port())
        jobs = {
            "ours, 1 worker": (
                stack.enter_context(servers.run_service(settings, folder / "ours.log")).port,
                "/v1/forecast",
                body,
            ),
            "raw uvicorn route": (
                stack.enter_context(servers.run_raw_server(slot / "current" / "bundle", folder / "raw.log")).port,
                "/",
                body,
            ),
        }
        if length.with_mlflow:
            from benchmarks.service.mlflow_model import save_model

            save_model(slot / "current" / "bundle", folder / "mlflow")
            server = stack.enter_context(servers.run_mlflow_server(folder / "mlflow", folder / "mlflow.log"))
            jobs["MLflow model server"] = (server.port, "/invocations", frame)
        for number in range(length.repeats + 1):  # the first repetition is a warm-up
            for connections in CONNECTION_COUNTS:
                for name, (port, path, file) in jobs.items():
                    result = servers.run_load(LoadJob(port, path, str(file), JSON_HEADERS, connections, length.seconds))
                    assert set(result.statuses) == {"200"}, f"{name}: {dict(result.statuses)}, {result.lost} lost"
                    if number:
                        results_by_case.setdefault((name, connections), []).append(result)
    rows = ["| | connections | requests/s | p50 ms | p99 ms | speedup of ours |", "|---|---|---|---|---|---|"]
    for connections in CONNECTION_COUNTS:
        our_rates = [_requests_per_second(result) for result in results_by_case["ours, 1 worker", connections]]
        for name in jobs:
            results = results_by_case[name, connections]
            ratio = statistics.median(
                our_rate / _requests_per_second(result) for our_rate, result in zip(our_rates, results, strict=True)
            )
            percentiles = [_latency_percentiles(result) for result in results]
            medians = [statistics.median(column) for column in zip(*percentiles, strict=True)]
            rate = statistics.median(map(_requests_per_second, results))
            rows.append(f"| {name} | {connections} | {rate:.0f} | {medians[0]:.2f} | {medians[1]:.2f} | {ratio:.2f} |")
    return ["## One forecast of 24 steps, 96 steps of history, LSTM 64", "", *rows]


def _requests_per_second(result: LoadResult) -> float:
    return len(result.latencies) / result.seconds


def _latency_percentiles(result: LoadResult) -> tuple[float, float]:
    low, high = np.quantile(result.latencies, [0.5, 0.99]) * 1000
    return float(low), float(high)


def measure_startup(folder: Path, length: RunLength) -> list[str]:
    """Measures the time from the command to the first 200 of /readyz, and the memory of a worker then and after 1000 requests."""
    body = folder / "one.json"
    body.write_text(json.dumps(make_request(1, servers.CONTEXT)))
    rows = [
        "| model | ready after s | CPU s until ready | resident MB | after 1000 forecasts | torch |",
        "|---|---|---|---|---|---|",
    ]
    for name, fields in (("LSTM 64, in the kernel", {}), ("LSTM 64, on its graph", {"decoder": "direct"})):
        slot = folder / f"slot of {name}"
        servers.publish_bundle(slot, **fields)
        ready_seconds, cpu_seconds, memory_before, memory_after, loads_torch = [], [], [], [], []
        for _ in range(length.repeats):
            settings = Settings(slot=slot, port=servers.free_port())
            command = [*servers.SERVING_COMMAND]
            with servers.start_server(
                command, settings.port, settings.to_environment(), folder / "start.log"
            ) as server:
                ready_seconds.append(servers.wait_until_ready(server, "/readyz"))
                [worker] = server.workers
                cpu_seconds.append(sum(sum(process.cpu_times()[:2]) for process in server.processes))
                memory_before.append(worker.memory_info().rss / 2**20)
                servers.run_load(LoadJob(server.port, "/v1/forecast", str(body), JSON_HEADERS, 4, count=1000))
                memory_after.append(worker.memory_info().rss / 2**20)
                loads_torch.append(any("libtorch" in mapping.path for mapping in worker.memory_maps()))
        medians = [statistics.median(column) for column in (ready_seconds, cpu_seconds, memory_before, memory_after)]
        torch = "loaded" if any(loads_torch) else "not loaded"
        rows.append(f"| {name} | {medians[0]:.2f} | {medians[1]:.2f} | {medians[2]:.0f} | {medians[3]:.0f} | {torch} |")
    return ["## Start and memory of a worker", "", "Targets: 3 s, 250 MB.", "", *rows]


def measure_panels(folder: Path, length: RunLength) -> list[str]:
    """Measures requests with 1000 series of one week of hourly values, in every format."""
    rows = ["| format | MB sent | s | series/s |", "|---|---|---|---|"]
    with servers.run_service(Settings(slot=folder / "slot", port=servers.free_port()), folder / "panels.log") as server:
        for name, (content, media_type) in _encode_formats(make_histories(1000, 168)).items():
            file = folder / f"panel of {name}"
            file.write_bytes(content)
            headers = {"content-type": media_type}
            result = servers.run_load(
                LoadJob(server.port, "/v1/forecast", str(file), headers, count=1 + 3 * length.repeats, timeout_s=120)
            )
            assert set(result.statuses) == {"200"}, f"{name}: {dict(result.statuses)}"
            seconds = statistics.median(result.latencies[1:])
            rows.append(f"| {name} | {len(content) / 1e6:.2f} | {seconds:.3f} | {1000 / seconds:.0f} |")
    return ["## 1000 series of 168 steps, 24 steps ahead", "", *rows]


def _encode_formats(values: np.ndarray) -> dict[str, tuple[bytes, str]]:
    options = {"horizon": HORIZON}
    rows = make_request(*values.shape)
    lines = "\n".join([json.dumps(options), *(json.dumps(series) for series in rows["series"])])
    return {
        "JSON": (json.dumps(rows).encode(), "application/json"),
        "NDJSON": (lines.encode(), "application/x-ndjson"),
        "Arrow": (encode_arrow(values, horizon=HORIZON), "application/vnd.apache.arrow.stream"),
    }


def encode_arrow(values: np.ndarray, *, horizon: int) -> bytes:
    """Encodes histories as an Arrow request; `values` has the shape [series, step]."""
    names = [f"series_{number}" for number in range(len(values))]
    table = pa.table(
        {"id": names, "start": [START] * len(values), "freq": ["h"] * len(values), "y": list(values)}
    ).replace_schema_metadata({b"forecast": json.dumps({"horizon": horizon}).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
