"""How many series a batch forecasts for a second of one core, in how much memory, and where its time goes.

    python benchmarks/scale/batch.py                      10,000 and 100,000 series, some minutes on two cores
    python benchmarks/scale/batch.py --sizes 1000000      a quarter of an hour on two idle cores, 3 GB of scratch
    python benchmarks/scale/batch.py --peers-only         the statistical models again
    ... --neuralforecast PYTHON                           NeuralForecast too, by another Python that has it

Generates daily series of 200 points (the family `mixture`, season 7), written in blocks to Parquet, and runs `forecaster batch`
over them with the pretrained network: horizon 28, 80 % intervals, in processes of its own. Beside it, SeasonalNaive and AutoETS
of statsforecast forecast what they can hold in one process. All times are processor seconds, which a busy machine changes less
than the time of the clock; each figure is measured once. Writes benchmarks/results/batch.md, and keeps the measurements in
benchmarks/results/batch.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forecaster.bundle.pretrained.base import base_predictor
from forecaster.synthetic.generation import generate

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
STEPS, HORIZON, SEASON, LEVEL, FREQ = 200, 28, 7, 80, "D"
BLOCK = 5_000  # series that are generated and written at a time
PEER_SIZES = {"SeasonalNaive": 10_000, "AutoETS": 300}
NEURALFORECAST_SIZE = 10_000
TARGET_SERIES, TARGET_CORES = 10_000_000, 16
AS_OF = "2020-01-01"


def main() -> None:
    """Measures what the arguments name, and writes the page of all measurements."""
    arguments = parse_arguments()
    path = RESULTS / "batch.json"
    stored = json.loads(path.read_text()) if path.exists() else {"batch": {}, "peers": {}}
    scratch = Path(tempfile.mkdtemp(prefix="batch-benchmark-", dir=arguments.scratch))
    try:
        for size in [] if arguments.peers_only else arguments.sizes:
            source = write_series(scratch / f"series-{size}.parquet", size)
            for layout in ("auto", "shuffle"):
                measured = measure_batch(source, scratch / "out", size, layout=layout, workers=arguments.workers)
                stored["batch"][f"{size} {layout}"] = measured
                print(f"{size} {layout}: {measured}", flush=True)
                if layout == "auto":
                    measured["score"] = measure_in_process("score", scratch / "out")
                    print(f"{size} score: {measured['score']}", flush=True)
                path.write_text(json.dumps(stored, indent=1) + "\n")
            source.unlink()
        stored["stages"] = measure_stages()
        for name, size in PEER_SIZES.items():
            source = write_series(scratch / f"{name}.parquet", size)
            stored["peers"][name] = {"series": size, **measure_in_process(name, source)}
            print(f"{name}: {stored['peers'][name]}", flush=True)
        if arguments.neuralforecast is not None:
            source = write_series(scratch / "neuralforecast.parquet", NEURALFORECAST_SIZE)
            measured = measure_neuralforecast(arguments.neuralforecast, source)
            stored["neuralforecast"] = {"series": NEURALFORECAST_SIZE, **measured}
            print(f"NeuralForecast: {stored['neuralforecast']}", flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    path.write_text(json.dumps(stored, indent=1) + "\n")
    (RESULTS / "batch.md").write_text(render(stored))


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments; in the process of one measurement it makes that and exits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--scratch", type=Path, default=None, help="folder of the data, by default the system's for temporary files"
    )
    parser.add_argument("--peers-only", action="store_true")
    parser.add_argument("--neuralforecast", metavar="PYTHON", help="a Python with NeuralForecast")
    parser.add_argument("--process", nargs=2, help=argparse.SUPPRESS)  # of a score or of one statistical model
    arguments = parser.parse_args()
    if arguments.process:
        name, path = arguments.process
        seconds = run_score(path) if name == "score" else run_peer(name, path)
        print(json.dumps({"cpu_s": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        sys.exit()
    return arguments


def write_series(path: Path, size: int) -> Path:
    """Writes generated series to one Parquet file, a block of them in memory at a time."""
    days = np.datetime64("2019-06-15", "us") + np.arange(STEPS) * np.timedelta64(1, "D")
    writer = None
    for first in range(0, size, BLOCK):
        count = min(BLOCK, size - first)
        values = generate("mixture", num_series=count, length=STEPS, season=SEASON, seed=first).values
        ids = [f"series_{number:08d}" for number in range(first, first + count)]
        table = pa.table({"unique_id": np.repeat(ids, STEPS), "ds": np.tile(days, count), "y": values.reshape(-1)})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return path


def measure_batch(source: Path, out: Path, size: int, *, layout: str, workers: int) -> dict[str, Any]:
    """Runs one batch in processes of its own; returns its processor seconds and peak memory."""
    shutil.rmtree(out, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "pipelines", "batch", "base", str(source), "--out", str(out), "--as-of", AS_OF),
        *("--freq", FREQ, "--horizon", str(HORIZON), "--level", str(LEVEL), "--workers", str(workers)),
        *("--layout", layout),
    ]
    before, start = read_children_seconds(), time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    wall, cpu = time.perf_counter() - start, read_children_seconds() - before
    records = [json.loads(path.read_text()) for path in (out / "_forecaster").glob("as_of=*/shards/*.json")]
    assert sum(record["series"] for record in records) == size
    stages = {stage: sum(record["cpu_seconds"][stage] for record in records) for stage in ("read", "forecast", "write")}
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "shard_cpu_s": stages,
        "peak_mib": max(record["peak_mib"] for record in records),
        "rejected": sum(record["rejected"] for record in records),
        "input_mib": source.stat().st_size / (1 << 20),
        "output_mib": sum(path.stat().st_size for path in out.glob("as_of=*/*.parquet")) / (1 << 20),
    }


def measure_stages(size: int = 5_000) -> dict[str, float]:
    """Returns the share of the rollout with its intervals in the processor time of forecasting a table, in this process."""
    from forecaster.batch.forecasts import forecast_table

    predictor = base_predictor(FREQ, horizon=HORIZON)
    with tempfile.TemporaryDirectory() as folder:
        table = pq.read_table(write_series(Path(folder) / "series.parquet", size))
    seconds = {"rollout": 0.0}
    rollout = predictor.forecast_batch

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        outcomes = rollout(*args, **kwargs)
        seconds["rollout"] += time.process_time() - start
        return outcomes

    predictor.forecast_batch = timed  # type: ignore[method-assign]
    start = time.process_time()
    forecast_table(predictor, table, horizon=HORIZON, level=LEVEL)
    seconds["table"] = time.process_time() - start
    return {"rollout_share": seconds["rollout"] / seconds["table"], "us_per_series": 1e6 * seconds["table"] / size}


def measure_in_process(name: str, path: Path) -> dict[str, Any]:
    """Makes one measurement in a process of its own; returns its processor seconds and peak memory."""
    completed = subprocess.run(
        [sys.executable, __file__, "--process", name, str(path)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    measured: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return measured


def measure_neuralforecast(python: str, path: Path) -> dict[str, Any]:
    """Measures the `predict` of NeuralForecast by a Python that has it; returns its processor seconds and peak memory."""
    script = Path(__file__).with_name("peer_neuralforecast.py")
    completed = subprocess.run(
        [python, str(script), str(path), "--horizon", str(HORIZON), "--level", str(LEVEL)],
        check=True,
        cwd=path.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    measured: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return measured


def run_peer(name: str, source: str) -> float:
    """Forecasts a file with a model of statsforecast; returns the processor seconds."""
    import pandas as pd
    from statsforecast import StatsForecast, models

    model = getattr(models, name)(season_length=SEASON)
    warm_up = pd.read_parquet(source).head(4 * STEPS)  # compiles
    fallback = models.SeasonalNaive(season_length=SEASON)  # some series have missing values, which AutoETS refuses
    forecaster = StatsForecast([model], freq=FREQ, n_jobs=1, fallback_model=fallback)
    forecaster.forecast(df=warm_up, h=HORIZON, level=[LEVEL])
    start = time.process_time()
    table = forecaster.forecast(df=pd.read_parquet(source), h=HORIZON, level=[LEVEL])
    table.to_parquet(f"{source}.forecast")
    return time.process_time() - start


def run_score(archive: str) -> float:
    """Scores an archive against invented actuals of all its rows; returns the processor seconds, with reading the actuals."""
    from forecaster.batch import read_archive, score_archive
    from forecaster.batch.actuals import read_actuals

    table = read_archive(archive, columns=["unique_id", "ds", "forecaster"]).rename_columns(["unique_id", "ds", "y"])
    path = f"{archive}-actuals.parquet"
    pq.write_table(table, path)
    del table
    start = time.process_time()
    score_archive(archive, read_actuals(path, archive), by=("step", "version"))
    return time.process_time() - start


def read_children_seconds() -> float:
    """Returns the processor seconds of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def render(stored: dict[str, Any]) -> str:
    """Returns the page of results."""
    return "\n".join(_render_lines(stored)) + "\n"


def _render_lines(stored: dict[str, Any]) -> Iterator[str]:
    yield "# Batches of many series"
    yield ""
    yield (
        f"`python benchmarks/scale/batch.py`: daily series of {STEPS} points (family `mixture`, seeds 0, {BLOCK:,} and so on), "
        f"the pretrained network, horizon {HORIZON}, {LEVEL} % intervals. Times are processor seconds, each measured once; *per "
        "core* is series for a processor second of all processes with their start. Memory is the peak of one worker."
    )
    yield ""
    yield "| series | input | series/s per core | processor s | read | forecast | write | plan, start, shuffle | peak, MiB |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for key, row in sorted(stored["batch"].items(), key=lambda item: int(item[0].split()[0])):
        size, layout = key.split()
        stages = row["shard_cpu_s"]
        rest = row["cpu_s"] - sum(stages.values())
        kind = "sorted by id" if layout == "auto" else "shuffled"
        yield (
            f"| {int(size):,} | {kind} | {int(size) / row['cpu_s']:,.0f} | {row['cpu_s']:.1f} | {stages['read']:.1f} | "
            f"{stages['forecast']:.1f} | {stages['write']:.1f} | {rest:.1f} | {row['peak_mib']:.0f} |"
        )
    yield ""
    for key, row in stored["batch"].items():
        if "score" in row:
            rows, score = int(key.split()[0]) * HORIZON, row["score"]
            yield (
                f"`forecaster score --by step,version` of {rows:,} rows that all have an actual: {score['cpu_s']:.1f} s, at most "
                f"{score['peak_mib']:.0f} MiB."
            )
    stages = stored["stages"]
    yield ""
    yield (
        f"Of the forecast of a table ({stages['us_per_series']:.0f} us per series, 5,000 series), "
        f"{100 * stages['rollout_share']:.0f} % are the rollout with its intervals; the others are reading rows to series and "
        "building the table."
    )
    yield ""
    yield "## Beside statistical models"
    yield ""
    yield "| model | series | series/s per core | peak, MiB |"
    yield "|---|---|---|---|"
    for name, row in stored["peers"].items():
        rate = row["series"] / row["cpu_s"]
        yield f"| {name} (statsforecast) | {row['series']:,} | {rate:,.1f} | {row['peak_mib']:.0f} |"
    network = stored.get("neuralforecast")
    if network is not None:
        rate = network["series"] / network["cpu_s"]
        yield f"| LSTM 96x2 (NeuralForecast) | {network['series']:,} | {rate:,.1f} | {network['peak_mib']:.0f} |"
    yield ""
    yield "Both libraries hold all series in one frame; their memory grows with the number of series."
    if network is not None:
        yield "NeuralForecast: `predict` of a frame with the quantiles of one level, one thread, missing values replaced before."
    else:
        yield "NeuralForecast was not measured."
    yield ""
    yield from _render_extrapolation(stored)


def _render_extrapolation(stored: dict[str, Any]) -> Iterator[str]:
    sizes = {key: int(key.split()[0]) for key in stored["batch"] if key.endswith("auto")}
    largest = max(sizes, key=lambda key: sizes[key])
    row, size = stored["batch"][largest], sizes[largest]
    scale = TARGET_SERIES / size
    seconds = row["cpu_s"] * scale / TARGET_CORES
    stage, share = max(row["shard_cpu_s"].items(), key=lambda item: item[1])
    read_rate = row["input_mib"] * scale / seconds
    write_rate = row["output_mib"] * scale / seconds
    yield f"## Extrapolation to {TARGET_SERIES:,} series on {TARGET_CORES} cores"
    yield ""
    yield (
        f"From {size:,} series, if all cores are as fast together as one alone: {seconds / 60:.0f} minutes. The bottleneck is "
        f"the stage *{stage}* with {100 * share / row['cpu_s']:.0f} % of the processor time; reading needs {read_rate:.0f} MiB/s "
        f"and writing {write_rate:.0f} MiB/s. This is computed, not measured."
    )


if __name__ == "__main__":
    main()
