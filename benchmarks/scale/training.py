"""Training on data larger than memory: anonymous memory, time and disk of a training on 10,000 to 1,000,000 series of 500 points.

    python benchmarks/scale/training.py                          10,000 and 100,000 series, on disk and in memory
    python benchmarks/scale/training.py --series 1000000 --memory-series   one million series, on disk only

Every size runs in processes of its own, one at a time: one generates a Parquet file, one trains from it by a panel on disk, one
by a panel in memory. The training processes may have 8 GiB of data (RLIMIT_DATA: heap and private writable maps). With
`--cgroup FOLDER` they join a memory cgroup, whose limit counts the pages of files that they read, too:

    mkdir /sys/fs/cgroup/memory/limited && echo 8G > /sys/fs/cgroup/memory/limited/memory.limit_in_bytes     (version 1)

Anonymous memory (RssAnon) is sampled 20 times a second; pages of files do not count, because the system takes them back when it
needs them.
Measured sizes are kept in benchmarks/results/training_scale.json, so that sizes can be added. Writes
benchmarks/results/training_scale.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from forecaster.data.frames.panel import to_panel
from forecaster.data.on_disk.parquet import ParquetSource, read_parquet_panel
from forecaster.data.partial_periods import find_partial_periods
from forecaster.progress import Progress
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.sequence import train_model

RESULTS = Path(__file__).parent.parent / "results"
POINTS_PER_SERIES = 500
SERIES_PER_ROW_GROUP = 2_000
LIMIT_GIB = 8
OUT_OF_MEMORY = "out of memory"  # in place of the weights
GIB = 1 << 30
SPEC = Spec.parse(
    {
        "name": "scale",
        "context": 56,
        "horizon": 28,
        "season": 7,
        "scaling": "mean_abs",
        "network": {"cell": "lstm", "hidden": 64},
        "training": {"steps": 200, "epoch_steps": 100, "batch": 256, "valid_windows": 1},
    },
    where="the benchmark",
)
STAGES = ("libraries", "reading", "last periods", "fit", "calibration", "test", "facts")
STATUS_FILE = Path("/proc/self/status")


class Measurement(NamedTuple):
    """A training of one size: wall and CPU seconds and the peak of anonymous memory (GiB) by stage, and what it computed.

    With a cgroup, its limit (GiB) held for anonymous memory and pages of files together.
    """

    series: int
    place: str
    seconds: dict[str, float]
    cpu: dict[str, float]
    peaks: dict[str, float]
    parquet: float
    mase: float | None
    weights: str
    sampled: dict[str, int]
    cgroup_limit: float | None = None


def main() -> None:
    """Measures every size in processes of its own, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, nargs="*", default=[10_000, 100_000], help="sizes on disk")
    parser.add_argument("--memory-series", type=int, nargs="*", default=[10_000, 100_000], help="sizes in memory")
    parser.add_argument("--folder", type=Path, help="where the data are generated; by default the temporary files")
    parser.add_argument("--cgroup", type=Path, help="folder of a memory cgroup, which the training processes join")
    parser.add_argument("--alone", nargs=2, metavar=("STEP", "FILE"), help="one step in this process")
    options = parser.parse_args()
    if options.alone is not None:
        _run_alone(options.alone[0], Path(options.alone[1]), options.series[0], options.cgroup)
        return
    store = RESULTS / "training_scale.json"
    measured = [Measurement(**item) for item in json.loads(store.read_text())] if store.exists() else []
    for size in sorted({*options.series, *options.memory_series}):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "data.parquet"
            _start("generate", path, size)
            for place, sizes in {"disk": options.series, "memory": options.memory_series}.items():
                if size in sizes:
                    result = Measurement(**json.loads(_start(place, path, size, options.cgroup).splitlines()[-1]))
                    measured = [item for item in measured if (item.series, item.place) != (size, place)] + [result]
                    store.write_text(json.dumps([item._asdict() for item in measured], indent=1) + "\n")
                    (RESULTS / "training_scale.md").write_text(format_report(measured))


def _start(step: str, path: Path, series: int, cgroup: Path | None = None) -> str:
    command = [sys.executable, __file__, "--alone", step, str(path), "--series", str(series)]
    command += [] if cgroup is None else ["--cgroup", str(cgroup)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _run_alone(step: str, path: Path, series: int, cgroup: Path | None) -> None:
    if step == "generate":
        generate(path, series)
        return
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_GIB * GIB, LIMIT_GIB * GIB))
    limit = None if cgroup is None else _join(cgroup)
    print(json.dumps(measure(path, series, place=step)._replace(cgroup_limit=limit)._asdict()))


def _join(cgroup: Path) -> float:
    """Moves this process into a memory cgroup; returns its limit in GiB."""
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    [limit] = [file for name in ("memory.max", "memory.limit_in_bytes") if (file := cgroup / name).exists()]
    return int(limit.read_text()) / GIB


def generate(path: Path, series: int) -> None:
    """Writes daily series of a level, a week and noise, one row group at a time."""
    rng = np.random.default_rng(0)
    schema = pa.schema([("unique_id", pa.string()), ("ds", pa.timestamp("us")), ("y", pa.float64())])
    steps = np.arange(POINTS_PER_SERIES)
    days = np.datetime64("2024-01-01", "us") + steps * np.timedelta64(1, "D")
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, series, SERIES_PER_ROW_GROUP):
            count = min(SERIES_PER_ROW_GROUP, series - first)
            level, size = rng.lognormal(3, 1, (2, count, 1))
            phase = rng.integers(0, 7, (count, 1))
            y = (
                level
                + 0.3 * size * np.sin(2 * np.pi * (steps + phase) / 7)
                + 0.1 * size * rng.normal(size=(count, len(steps)))
            )
            ids = np.repeat([f"s{index:07d}" for index in range(first, first + count)], len(steps))
            writer.write_table(pa.table([ids, np.tile(days, count), y.ravel()], schema=schema))


class StageSampler(Progress):
    """Seconds and the peak of anonymous memory of each stage; the phases of a training are stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.peaks: dict[str, float] = {}
        self._open("libraries")
        threading.Thread(target=self._sample, daemon=True).start()

    def begin(self, name: str, total: int | None = None) -> None:
        """A stage begins."""
        self._close()
        self._open(name)

    def end(self, *, failed: bool = False) -> None:
        """A stage ends; what follows it belongs to the stage `facts`."""
        self._close()
        self._open("facts")

    def _open(self, stage: str) -> None:
        self._stage, self._started = stage, (time.perf_counter(), time.process_time())

    def _close(self) -> None:
        now = time.perf_counter(), time.process_time()
        for times, ended, started in zip((self.seconds, self.cpu), now, self._started, strict=True):
            times[self._stage] = times.get(self._stage, 0.0) + ended - started
        self._read_peak()
        print(f"{self._stage}: {self.seconds[self._stage]:.1f} s", file=sys.stderr, flush=True)

    def _sample(self) -> None:
        while True:
            self._read_peak()
            time.sleep(0.05)

    def _read_peak(self) -> None:
        anonymous = int(STATUS_FILE.read_text().partition("RssAnon:")[2].split()[0]) * 1024 / GIB
        self.peaks[self._stage] = max(self.peaks.get(self._stage, 0.0), anonymous)


def measure(path: Path, series: int, *, place: str) -> Measurement:
    """Trains on the generated series, from a panel on disk or in memory."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    sampler = StageSampler()
    try:
        with sampler.phase("reading"):
            panel = _read(path, place)
        with sampler.phase("last periods"):
            find_partial_periods(panel)
        trained = train_model(panel, SPEC, accelerator="cpu", facts={"data": "generated"}, progress=sampler)
        sampler.end()
    except MemoryError:
        size = path.stat().st_size / GIB
        peaks = {stage: peak for stage, peak in sampler.peaks.items() if stage in sampler.seconds}
        return Measurement(series, place, sampler.seconds, sampler.cpu, peaks, size, None, OUT_OF_MEMORY, {})
    weights = hashlib.sha256(
        b"".join(value.numpy().tobytes() for value in trained.model.network.state_dict().values())
    ).hexdigest()
    facts: dict[str, Any] = trained.model.facts
    return Measurement(
        series,
        place,
        sampler.seconds,
        sampler.cpu,
        sampler.peaks,
        path.stat().st_size / GIB,
        facts["backtest"]["challenger"]["mase"],
        weights[:12],
        facts.get("evaluated_series") or {},
    )


def _read(path: Path, place: str) -> Panel:
    if place == "disk":
        return read_parquet_panel(ParquetSource(path), folder=path.parent)
    return to_panel(pd.read_parquet(path))


def format_report(measured: list[Measurement]) -> str:
    """Formats one table of peaks and one of seconds."""
    ordered = sorted(measured, key=lambda item: (item.series, item.place))
    names = [f"{item.series:,}, {'on disk' if item.place == 'disk' else 'in memory'}" for item in ordered]
    header = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]

    def row(name: str, values: list[float | None], pattern: str = "{:.2f}") -> str:
        return f"| {name} | {' | '.join('-' if value is None else pattern.format(value) for value in values)} |"

    peaks = [row(stage, [item.peaks.get(stage) for item in ordered]) for stage in STAGES]
    seconds = [row(stage, [item.cpu.get(stage) for item in ordered], "{:.1f}") for stage in STAGES]
    values = [item.series * POINTS_PER_SERIES * 8 / GIB for item in ordered]
    weights = [item.weights if item.weights == OUT_OF_MEMORY else f"`{item.weights}`" for item in ordered]
    evaluated = [
        "-"
        if item.mase is None
        else f"{item.sampled.get('calibration', item.series):,} and {item.sampled.get('test', item.series):,}"
        for item in ordered
    ]
    return "\n".join(
        [
            "# A training larger than memory",
            "",
            f"`python benchmarks/scale/training.py`: daily series of {POINTS_PER_SERIES} points (seed 0), LSTM 64, context "
            f"{SPEC.context}, horizon {SPEC.horizon}, {SPEC.training.steps} steps of {SPEC.training.batch} windows, seed "
            f"{SPEC.training.seed}, CPU, one thread, torch {torch.__version__}, on a machine that other work shared. A process "
            f"per column, with RLIMIT_DATA at {LIMIT_GIB} GiB. Where a cgroup is named, its limit held for anonymous memory and "
            "pages of files together. A column that ends with `out of memory` has the stages until then.",
            "",
            "Peak of anonymous memory (RssAnon), GiB; the first row is the process before it reads anything:",
            "",
            *header,
            *peaks,
            row("**whole training**", [max(item.peaks.values()) for item in ordered]),
            "",
            "CPU seconds, which other work disturbs less than the clock:",
            "",
            *header,
            *seconds,
            row("**whole training**", [sum(item.cpu.values()) for item in ordered], "{:.1f}"),
            row("by the clock", [sum(item.seconds.values()) for item in ordered], "{:.1f}"),
            "",
            "Limit, disk (GiB) and results:",
            "",
            *header,
            row("cgroup limit, GiB", [item.cgroup_limit for item in ordered], "{:.0f}"),
            row("Parquet file", [item.parquet for item in ordered]),
            row("values (on disk: the tape)", values),
            f"| series calibrated and tested on | {' | '.join(evaluated)} |",
            row("MASE of the test", [item.mase for item in ordered], "{:.6f}"),
            f"| weights, sha256 | {' | '.join(weights)} |",
            "",
        ]
    )


if __name__ == "__main__":
    main()
