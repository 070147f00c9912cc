"""One forecast of a Parquet file by the checkout on PYTHONPATH, timed by stage; prints JSON. Run by columnar.py.

PYTHONPATH=CHECKOUT python columnar_stages.py stages|command|api DATA BUNDLE OUT
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

LEVELS = (0.1, 0.9)
HORIZON = 28


def peak_mb() -> float:
    """Returns the peak of the resident memory since `reset_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def reset_peak() -> float:
    """Starts a new peak, and returns the resident memory."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


@contextlib.contextmanager
def measure(stage: str, results: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Records the CPU seconds and the peak memory of a stage."""
    reset_peak()
    started = time.process_time()
    yield
    results[stage] = (time.process_time() - started, peak_mb())


def forecast_by_stages(data: str, bundle: Path, out: Path) -> dict[str, tuple[float, float]]:
    """Does what `forecaster forecast` does, stage by stage."""
    results: dict[str, tuple[float, float]] = {}
    with measure("imports and model", results):
        from forecaster.bundle.artifact import load_predictor
        from forecaster.data.forecast_table import build_forecast_table
        from forecaster.data.frames.panel import to_panel
        from pipelines.commands.console import write_table
        from pipelines.sources import DataSource
        from pipelines.sources.panels import _read_rows

        predictor = load_predictor(bundle)
    with measure("read", results):
        frame = _read_rows(DataSource(data)).frame
    with measure("panel", results):
        panel = to_panel(frame)
    del frame
    with measure("forecast", results):
        outcomes = predictor.forecast_batch(panel.series, HORIZON, levels=LEVELS)
    with measure("table", results):
        table = build_forecast_table(outcomes, LEVELS)
    with measure("write", results):
        write_table(out, lambda: table)
    return results


def run_command(data: str, bundle: Path, out: Path) -> dict[str, tuple[float, float]]:
    """Runs the whole command; the CPU seconds and the peak are those of the process."""
    from pipelines.cli import main

    reset_peak()
    levels = [argument for level in LEVELS for argument in ("--levels", str(level))]
    with contextlib.suppress(SystemExit):
        main(["forecast", str(bundle), data, "--horizon", str(HORIZON), *levels, "--out", str(out)])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"command": (usage.ru_utime + usage.ru_stime, peak_mb())}


def call_api(data: str, bundle: Path, out: Path) -> dict[str, tuple[float, float]]:
    """Calls `Forecaster.predict` on a frame; the peak is what the call adds to the memory before it."""
    import pandas as pd

    from forecaster import Forecaster

    model, frame = Forecaster.load(bundle), pd.read_parquet(data)
    before, started = reset_peak(), time.process_time()
    forecast = model.predict(frame, HORIZON, level=80)
    seconds, peak = time.process_time() - started, peak_mb()
    forecast.to_parquet(out)
    return {"predict": (seconds, peak - before)}


MODES = {"stages": forecast_by_stages, "command": run_command, "api": call_api}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    mode, data_path, bundle_path, out_path = sys.argv[1:]
    with contextlib.redirect_stderr(None):
        measured = MODES[mode](data_path, Path(bundle_path), Path(out_path))
    print(json.dumps(measured))
