"""The whole process, as `time` would tell it: from its start, imports and all, to its end."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from cases import SHORT, STAMP, Case, values
from runner_process import command, environment, python_of


def whole(entrant: str, case: Case, *, peers: Path, threads: int, folder: Path) -> Callable[[], dict[str, float]]:
    """One training in a process of its own, ready to be timed; a short one went before it.

    Ours is the command itself. Its root is kept, so that its database is made once, as a user's is.
    """
    runner, name = entrant.split("/", 1)

    def act(steps: int) -> None:
        asked = replace(case, steps=steps)
        line = (
            _command_line(asked, folder)
            if runner == "ours"
            else [*command(runner, python_of(runner, peers)), "--once", json.dumps(asdict(asked)), name]
        )
        with (folder / "whole.log").open("a") as log:
            subprocess.run(line, check=True, env=environment(threads), cwd=folder, stdout=log, stderr=log, timeout=600)

    def timed() -> dict[str, float]:
        started, cpu = time.perf_counter(), _cpu_of_children()
        act(case.steps)
        return {"seconds": time.perf_counter() - started, "cpu": _cpu_of_children() - cpu}

    act(min(case.steps, SHORT))
    return timed


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _command_line(case: Case, folder: Path) -> list[str]:
    import pandas as pd
    import yaml

    stamps = pd.date_range(STAMP, periods=case.length, freq="h")
    series = folder / f"{case.name}.csv"
    pd.DataFrame({"unique_id": "s0", "ds": stamps, "y": values(case)[0]}).to_csv(series, index=False)
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
