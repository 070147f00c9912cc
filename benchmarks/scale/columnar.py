"""Forecasts of many series in one process, before and after the columnar paths: CPU seconds by stage, and peak memory.

    git worktree add ../before d0af245 && (cd ../before && python setup.py build_ext --inplace)
    OMP_NUM_THREADS=1 python benchmarks/scale/columnar.py --before ../before    # writes results/columnar.md, 6 minutes

The data are N monthly series of 200 points (seed 0), in a Parquet file; the model is configs/hospital_small.yaml, trained for 200
steps, with a horizon of 28 and two levels. Both versions run in processes of their own, in turns. The outputs must be the same
bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
STEPS = 200
STAGES = ("imports and model", "read", "panel", "forecast", "table", "write")
VERSIONS = ("before", "after")


class Run(NamedTuple):
    """A mode of columnar_stages.py, the suffix of its output, and the rows of the report that it measures."""

    mode: str
    suffix: str
    rows: tuple[str, ...]


RUNS = {
    "stages": Run("stages", "csv", STAGES),
    "csv": Run("command", "csv", ("command, csv",)),
    "parquet": Run("command", "parquet", ("command, parquet",)),
    "api": Run("api", "parquet", ("predict",)),
}
Measured = dict[str, tuple[float, float]]


def write_data(path: Path, *, series: int) -> float:
    """Writes the series; returns the size of their frame in memory, in MB."""
    rng, month = np.random.default_rng(0), np.arange(STEPS)
    y = 100 + 10 * np.sin(month * np.pi / 6) + 20 * rng.normal(size=(series, 1))
    y = y + rng.normal(size=(series, STEPS)).cumsum(axis=1)
    ids = pd.array([f"series_{number:07d}" for number in range(series)], dtype="str")
    ds = pd.date_range("2005-01-01", periods=STEPS, freq="MS", unit="us")
    frame = pd.DataFrame(
        {"unique_id": ids.take(np.repeat(np.arange(series), STEPS)), "ds": np.tile(ds, series), "y": y.ravel()}
    )
    frame.to_parquet(path)
    return float(frame.memory_usage(index=False, deep=True).sum()) / 1e6


def write_model(folder: Path) -> None:
    """Trains the model for a moment, since only the speed of its forecasts counts."""
    import yaml

    from forecaster import Forecaster
    from forecaster.data.datasets import load_hospital

    spec = yaml.safe_load((CHECKOUT / "configs" / "hospital_small.yaml").read_text()) | {"horizon": 28}
    spec["training"] |= {"steps": 200}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Forecaster(spec=spec, freq="MS").fit(load_hospital(), test_windows=0, progress=False).save(folder)


def run_version(checkout: Path, run: Run, *, data: Path, model: Path, out: Path) -> Measured:
    """Runs one mode in a new process."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, str(HERE / "columnar_stages.py"), run.mode, str(data), str(model), str(out)]
    completed = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    measured: Measured = json.loads(completed.stdout.splitlines()[-1])
    return measured


def compare(
    checkouts: dict[str, Path], folder: Path, *, series: int, repeats: int, model: Path, runs: list[str]
) -> str:
    """Measures both versions in turns, and returns the section of the report."""
    data = folder / "data.parquet"
    frame_mb = write_data(data, series=series)
    seconds: dict[tuple[str, str], list[float]] = {}
    peaks: dict[tuple[str, str], float] = {}
    for _ in range(repeats):
        for run in map(RUNS.__getitem__, runs):
            digests = set()
            for version, checkout in checkouts.items():
                out = folder / f"{version}.{run.suffix}"
                for stage, (cpu, peak) in run_version(checkout, run, data=data, model=model, out=out).items():
                    name = f"{stage}, {run.suffix}" if stage == "command" else stage
                    seconds.setdefault((name, version), []).append(cpu)
                    peaks[name, version] = max(peak, peaks.get((name, version), 0.0))
                digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
            assert len(digests) == 1, f"the outputs of {run} differ"
    rows = []
    for name in (name for run in runs for name in RUNS[run].rows):
        before, after = (statistics.median(seconds[name, version]) for version in VERSIONS)
        memory = " | ".join(f"{peaks[name, version]:.0f}" for version in VERSIONS)
        share = f"{peaks[name, 'after'] / frame_mb:.2f}"
        rows.append(f"| {name} | {before:.2f} | {after:.2f} | {before / after:.1f} | {memory} | {share} |")
    heading = "| | before: CPU s | after: CPU s | ratio | before: peak, MB | after: peak, MB | of the frame |"
    return "\n".join(
        [
            f"## {series:,} series, a frame of {frame_mb:.0f} MB (rounds: {repeats})",
            "",
            heading,
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def main() -> None:
    """Measures all sizes and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the earlier version, with its kernel")
    parser.add_argument("--series", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--repeats", type=int, nargs="+", default=[3, 1], help="rounds for each size")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS, help="what is measured")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "columnar.md")
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before.resolve(), "after": CHECKOUT}
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        write_model(model)
        sections = [
            compare(checkouts, Path(name), series=series, repeats=repeats, model=model, runs=arguments.runs)
            for series, repeats in zip(arguments.series, arguments.repeats, strict=True)
        ]
    text = "\n\n".join(
        [
            "# From a frame to forecasts, before and after the columnar paths",
            "`python benchmarks/scale/columnar.py --before CHECKOUT`: monthly series of 200 points in Parquet (seed 0), a GRU "
            "of 40 units, horizon 28, two levels, one thread. Medians of the CPU seconds, both versions in turns; the outputs "
            "of both are the same bytes. Stages write CSV. Peaks are of the resident memory: of the process in a stage, of the "
            "whole process of a command, and what `predict` adds to the process.",
            *sections,
        ]
    )
    arguments.out.write_text(f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
