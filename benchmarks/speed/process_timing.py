"""Times whole processes as `time` does: from start to end, including imports."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from cases import FIRST_TIMESTAMP, SHORT_STEPS, SpeedCase, make_values
from runner_process import runner_command, runner_environment, runner_python


def prepare_process(
    entrant: str, case: SpeedCase, *, peers: Path, threads: int, folder: Path
) -> Callable[[], dict[str, float]]:
    """Prepares one training in a separate process, to be timed; a short training runs first.

    Ours is the command itself. Its root is kept, so that its database is created once, as for a user.
    """
    runner, name = entrant.split("/", 1)

    def run_training(steps: int) -> None:
        sized_case = replace(case, steps=steps)
        command = (
            train_command(sized_case, folder)
            if runner == "ours"
            else [*runner_command(runner, runner_python(runner, peers)), "--once", json.dumps(asdict(sized_case)), name]
        )
        with (folder / "whole.log").open("a") as log:
            subprocess.run(
                command, check=True, env=runner_environment(threads), cwd=folder, stdout=log, stderr=log, timeout=600
            )

    def time_training() -> dict[str, float]:
        started, cpu = time.perf_counter(), _children_cpu_seconds()
        run_training(case.steps)
        return {"seconds": time.perf_counter() - started, "cpu": _children_cpu_seconds() - cpu}

    run_training(min(case.steps, SHORT_STEPS))
    return time_training


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def train_command(case: SpeedCase, folder: Path) -> list[str]:
    """Writes the data and the specification of a case, and returns the command that trains on them."""
    import pandas as pd
    import yaml

    timestamps = pd.date_range(FIRST_TIMESTAMP, periods=case.length, freq="h")
    series = folder / f"{case.name}.csv"
    pd.DataFrame({"unique_id": "s0", "ds": timestamps, "y": make_values(case)[0]}).to_csv(series, index=False)
    spec = {
        "name": case.name,
        "context": case.context,
        "horizon": case.horizon,
        "season": 24,
        "scaling": "none",
        "network": {"cell": case.cell, "hidden": case.hidden, "layers": case.layers},
        "training": {"steps": case.steps, "epoch_steps": 50, "batch": case.batch, "learning_rate": 0.01},
    }
    config = folder / f"{case.name}.yaml"
    config.write_text(yaml.safe_dump(spec))
    train = ["train", str(series), "--config", str(config), "--root", str(folder / "root")]
    return [sys.executable, "-m", "pipelines.cli", *train]
