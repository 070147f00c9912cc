"""Seconds from a fresh process to the first forecast of a user's own CSV, without a training.

    python benchmarks/speed/first_forecast.py --repeats 5

Each run is a new Python process: on the command line (`forecaster forecast data.csv --horizon 12`), and in Python
(`Forecaster.pretrained().predict(df, horizon=12)`), with the time until the imports are done. Processor seconds
are reported too, because they depend less on what else the machine does. It writes benchmarks/results/first_forecast.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks/results/first_forecast.md"
HORIZON = 12
IMPORT_PROGRAM = "import pandas, forecaster.api.forecaster"
PYTHON_PROGRAM = """
import sys
import pandas as pd
from forecaster import Forecaster
df = pd.read_csv(sys.argv[1], parse_dates=["ds"])
assert len(Forecaster.pretrained().predict(df, horizon=12)) == 12 * df["unique_id"].nunique()
"""


def write_data(path: Path, *, num_series: int, steps: int) -> None:
    """Writes monthly series with a season and noise."""
    rng = np.random.default_rng(0)
    ds = pd.date_range("2010-01-01", periods=steps, freq="MS")
    wave = 10 * np.sin(np.arange(steps) * np.pi / 6)
    rows = [
        pd.DataFrame({"unique_id": f"T{number}", "ds": ds, "y": 100 + wave + rng.normal(size=steps)})
        for number in range(num_series)
    ]
    pd.concat(rows).to_csv(path, index=False)


class Seconds(NamedTuple):
    """The medians of a process: elapsed seconds, and those of the processor."""

    elapsed: float
    processor: float

    def __str__(self) -> str:
        return f"{self.elapsed:.2f} ({self.processor:.2f})"


def measure_process(command: Sequence[str], *, repeats: int) -> Seconds:
    """Returns the seconds of a command in a new process, after one run that fills the caches of the disk."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    elapsed, processor = [], []
    for _ in range(repeats + 1):
        start, used_before = time.perf_counter(), read_processor_seconds()
        subprocess.run(command, env=environment, cwd=tempfile.gettempdir(), stdout=subprocess.PIPE, check=True)
        elapsed.append(time.perf_counter() - start)
        processor.append(read_processor_seconds() - used_before)
    return Seconds(median(elapsed[1:]), median(processor[1:]))


def read_processor_seconds() -> float:
    """Returns the processor seconds of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(*, repeats: int) -> dict[str, tuple[Seconds, Seconds, Seconds]]:
    """Returns the seconds for each number of series: command line, Python, and the imports of Python alone."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for num_series, steps in ((1, 120), (1000, 120)):
            path = Path(folder) / f"data-{num_series}.csv"
            write_data(path, num_series=num_series, steps=steps)
            command_line = [sys.executable, "-m", "pipelines", "forecast", str(path), "--horizon", str(HORIZON)]
            rows[f"{num_series} series of {steps} months"] = (
                measure_process(command_line, repeats=repeats),
                measure_process([sys.executable, "-c", PYTHON_PROGRAM, str(path)], repeats=repeats),
                measure_process([sys.executable, "-c", IMPORT_PROGRAM], repeats=repeats),
            )
    return rows


def render(rows: dict[str, tuple[Seconds, Seconds, Seconds]], *, repeats: int, load: float) -> str:
    """Returns the page of results."""
    lines = [
        "# Seconds to the first forecast",
        "",
        "From the start of a new process to the forecast of a user's own CSV by the pretrained network, 12 steps ahead.",
        f"Elapsed seconds (processor seconds), medians of {repeats} processes, by `benchmarks/speed/first_forecast.py`",
        f"with Python {platform.python_version()} on {os.cpu_count()} CPU cores. Its load at the start was {load:.1f}:",
        "above the number of cores, elapsed seconds include the wait for others.",
        "",
        "| data | command line | Python | of these, the imports of Python |",
        "|---|---|---|---|",
        *(f"| {name} | {' | '.join(map(str, values))} |" for name, values in rows.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    text = render(measure(repeats=options.repeats), repeats=options.repeats, load=load)
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
