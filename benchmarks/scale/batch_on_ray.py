"""A batch on two Ray nodes of one machine beside the plain job: series per second, and the deaths of a worker and of a node.

    python benchmarks/scale/batch_on_ray.py   10,000 series; some minutes on two cores; needs the extra `ray`

The series are those of benchmarks/scale/batch.py: daily, 200 points, the family `mixture`; the pretrained network, horizon 28,
80 % intervals. Each job runs in processes of its own with two workers of one core. The cluster is two nodes with one CPU each,
started before the clock. The plain job and that on Ray run in turn, three times; then a worker that computes a shard is killed
(SIGKILL) in one job, and a whole node in another. All archives are compared file by file by SHA-256. Writes
benchmarks/results/ray.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from batch import AS_OF, FREQ, HORIZON, LEVEL, RESULTS, ROOT, STEPS, write_series

SHARDS, WORKERS, REPEATS = 20, 2, 3
PLAIN, ON_RAY = "plain job, 2 processes", "Ray, 2 nodes"
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


class Run(NamedTuple):
    """One job.

    Attributes:
        wall_s: Its seconds with the start of Python and, on Ray, the connection.
        job_s: Those that it reports: plan, shards, catalogue.
        shard_cpu_s: The processor seconds of all shards.
        load: The load average of the minute before.
        digest: Of the names and digests of all files.
        files: Their number.
    """

    wall_s: float
    job_s: float
    shard_cpu_s: float
    load: float
    digest: str
    files: int


def main() -> None:
    """Runs all jobs and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--series", type=int, default=10_000)
    size = parser.parse_args().series
    scratch = Path(tempfile.mkdtemp(prefix="ray-benchmark-"))
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    cluster: Any = None
    try:
        source = write_series(scratch / "series.parquet", size)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        second = cluster.add_node(**NODE)
        os.environ["RAY_ADDRESS"] = cluster.address
        runs: dict[str, list[Run]] = {PLAIN: [], ON_RAY: []}
        for number in range(REPEATS):
            runs[PLAIN].append(run_job(source, scratch / f"plain-{number}", "local", size=size))
            runs[ON_RAY].append(run_job(source, scratch / f"ray-{number}", "ray", size=size))
        runs["Ray, a worker killed"] = [run_job(source, scratch / "worker", "ray", size=size, disturb=kill_worker)]
        runs["Ray, a node killed"] = [
            run_job(
                source,
                scratch / "node",
                "ray",
                size=size,
                disturb=lambda: cluster.remove_node(second, allow_graceful=False),
            )
        ]
    finally:
        if cluster is not None:
            cluster.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    (RESULTS / "ray.md").write_text(render(runs, size))


def run_job(source: Path, out: Path, place: str, *, size: int, disturb: Callable[[], None] | None = None) -> Run:
    """Runs one batch, and disturbs it when a quarter of its shards are finished."""
    command = [
        *(sys.executable, "-m", "pipelines", "batch", "base", str(source), "--out", str(out), "--as-of", AS_OF),
        *("--freq", FREQ, "--horizon", str(HORIZON), "--level", str(LEVEL), "--workers", str(WORKERS), "--on", place),
        *("--shard-rows", str(size * STEPS // SHARDS)),
    ]
    load, start = os.getloadavg()[0], time.perf_counter()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while disturb is not None and process.poll() is None:
            if len(list(out.glob("_forecaster/as_of=*/shards/*.json"))) >= SHARDS // 4:
                disturb()
                disturb = None
            time.sleep(0.05)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert disturb is None, "the job ended before it was disturbed"
    wall = time.perf_counter() - start
    [reported] = [float(line.split()[1]) for line in output.splitlines() if line.startswith("time ")]
    names = sorted(path.relative_to(out) for path in out.rglob("*.parquet"))
    names += sorted(path.relative_to(out) for path in out.rglob("manifest.json"))
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {hashlib.sha256((out / name).read_bytes()).hexdigest()}\n".encode())
    records = [json.loads(path.read_text()) for path in out.glob("_forecaster/as_of=*/shards/*.json")]
    assert sum(record["series"] for record in records) == size
    cpu = sum(sum(record["cpu_seconds"].values()) for record in records)
    run = Run(wall, reported, cpu, load, digest.hexdigest(), len(names))
    print(out.name, run, flush=True)
    return run


def kill_worker() -> None:
    """Kills a worker that computes a shard, as the system does when memory runs out."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):  # of the nodes that this program has started
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith("ray::_run_step"):
                    process.kill()
                    return
        time.sleep(0.01)
    raise AssertionError("no worker was found")


def render(runs: dict[str, list[Run]], size: int) -> str:
    """Returns the page; raises if an archive differs."""
    every = [run for repeated in runs.values() for run in repeated]
    assert len({run.digest for run in every}) == 1, every
    lines = [
        "# A batch on Ray",
        "",
        f"`python benchmarks/scale/batch_on_ray.py --series {size}`: {size:,} daily series of {STEPS} points (family `mixture`, "
        f"seeds 0, 5,000 and so on), the pretrained network, horizon {HORIZON}, {LEVEL} % intervals, {SHARDS} shards, {WORKERS} "
        f"workers of one core, {os.cpu_count()} cores. Both nodes of the cluster are on this machine, with one CPU each, and "
        f"were started before. The first two jobs ran {REPEATS} times in turn, the others once, while other programs used the "
        "machine: *load* is the average of the minute before. Figures are medians, with the smallest and the largest. The "
        "processor seconds of the shards depend least on other programs.",
        "",
        "| job | seconds | series/s | processor seconds of the shards | seconds with the start of Python | load |",
        "|---|---|---|---|---|---|",
    ]
    for name, repeated in runs.items():
        seconds, cpu, wall = ([getattr(run, field) for run in repeated] for field in ("job_s", "shard_cpu_s", "wall_s"))
        rate = size / statistics.median(seconds)
        load = statistics.median(run.load for run in repeated)
        columns = [name, format_range(seconds), f"{rate:,.0f}", format_range(cpu), format_range(wall), f"{load:.0f}"]
        lines.append(f"| {' | '.join(columns)} |")
    lines += [
        "",
        f"All {len(every)} archives have the same {every[0].files} files ({every[0].files - 1} of Parquet and the manifest), "
        f"equal by SHA-256; digest of their list `{every[0].digest[:16]}`. Worker and node were killed with SIGKILL when a "
        "quarter of the shards was finished; Ray computed their shards again on what was left: one worker of two, after the "
        "death of the node, which Ray notices by missing heartbeats. Each job has workers of its own, which import the package "
        "and load the model once.",
    ]
    return "\n".join(lines) + "\n"


def format_range(values: Sequence[float]) -> str:
    """Formats the median, and of several values the smallest and the largest."""
    text = f"{statistics.median(values):.1f}"
    return text if len(values) == 1 else f"{text} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
