"""A batch on two Ray nodes of one machine beside the plain job: series per second, and the deaths of a worker and of a node.

    python benchmarks/scale/batch_on_ray.py   10,000 series; some minutes on two cores; needs the extra `ray`

The series are those of benchmarks/scale/batch.py: daily, 200 points, the family `mixture`; the pretrained network, horizon 28,
80 % intervals. Each job runs in processes of its own with two workers of one core. The cluster is two nodes with one CPU each,
started before the clock. One run is undisturbed; in one the worker that computes a shard is killed (SIGKILL), in one a whole
node. All archives are compared file by file by SHA-256. Each figure is measured once. Writes benchmarks/results/ray.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from batch import AS_OF, FREQ, HORIZON, LEVEL, RESULTS, ROOT, STEPS, write_series

SHARDS, WORKERS = 20, 2
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


class Run(NamedTuple):
    """One job: its seconds with the start of Python, those that it reports itself, and its load average before."""

    wall_s: float
    job_s: float
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
        runs = {"plain job, 2 processes": run_job(source, scratch / "plain", "local", size=size)}
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        second = cluster.add_node(**NODE)
        os.environ["RAY_ADDRESS"] = cluster.address
        runs["Ray, 2 nodes, first run"] = run_job(source, scratch / "first", "ray", size=size)
        runs["Ray, 2 nodes"] = run_job(source, scratch / "ray", "ray", size=size)
        runs["Ray, a worker killed"] = run_job(source, scratch / "worker", "ray", size=size, disturb=kill_worker)
        runs["Ray, a node killed"] = run_job(
            source,
            scratch / "node",
            "ray",
            size=size,
            disturb=lambda: cluster.remove_node(second, allow_graceful=False),
        )
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
    run = Run(wall, reported, load, digest.hexdigest(), len(names))
    print(place, out.name, run, flush=True)
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


def render(runs: dict[str, Run], size: int) -> str:
    """Returns the page; raises if an archive differs."""
    expected = next(iter(runs.values())).digest
    assert all(run.digest == expected for run in runs.values()), {name: run.digest for name, run in runs.items()}
    lines = [
        "# A batch on Ray",
        "",
        f"`python benchmarks/scale/batch_on_ray.py --series {size}`: {size:,} daily series of {STEPS} points (family `mixture`, "
        f"seeds 0, 5,000 and so on), the pretrained network, horizon {HORIZON}, {LEVEL} % intervals, {SHARDS} shards, {WORKERS} "
        f"workers of one core, {os.cpu_count()} cores. Both nodes of the cluster are on this machine, with one CPU each, and "
        "were started before. Each figure was measured once, while other programs used the machine (*load* is the average of "
        "the minute before).",
        "",
        "| job | seconds | series/s | seconds with the start of Python | load |",
        "|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        lines.append(f"| {name} | {run.job_s:.1f} | {size / run.job_s:,.0f} | {run.wall_s:.1f} | {run.load:.1f} |")
    files = next(iter(runs.values())).files
    lines += [
        "",
        f"All {len(runs)} archives have the same {files} files ({files - 1} of Parquet and the manifest), equal by SHA-256; "
        f"digest of their list `{expected[:16]}`. Worker and node were killed with SIGKILL when a quarter of the shards was "
        "finished; Ray computed their shards again on what was left: one worker of two, after the death of the node. Each job "
        "has workers of its own, which import the package and load the model once.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
