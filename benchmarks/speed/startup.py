"""Measures how long a small training takes from the start of the process to its first finished epoch, and to its end.

    python benchmarks/speed/startup.py
    python benchmarks/speed/startup.py --peers .peers --repeats 5

The work is that of the case "process" (one series, 1000 steps, epochs of 50): `forecaster train` from a file to a tracked, tested
bundle; Darts from the same file to a saved model, if its environment (`peers/install.py`) exists. Both run in turn, each in a new
process, on one thread. Takes a minute per repetition on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

_FIRST_EPOCH = "the first epoch is finished"
_STEPS_PER_EPOCH = 50


def main() -> None:
    """Runs all repetitions and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path(__file__).parent.parent.parent / ".peers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run", choices=("ours", "darts"), help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    if options.run == "ours":
        _run_ours([*options.arguments, *rest])
    elif options.run == "darts":
        _run_darts(Path(options.arguments[0]), json.loads(options.arguments[1]), Path(options.arguments[2]))
    else:
        _compare(options.peers, options.repeats)


def _compare(peers: Path, repeats: int) -> None:
    from cases import CASES
    from process_timing import train_command
    from runner_process import runner_environment

    case = CASES["process"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _python, _module, _cli, *command = train_command(case, folder)
        this_file = str(Path(__file__).absolute())
        commands = {"forecaster train": [sys.executable, this_file, "--run", "ours", "--", *command]}
        python = peers / "bin" / "python"
        if python.exists():
            arguments = [str(folder / f"{case.name}.csv"), json.dumps(asdict(case)), str(folder / "darts.pt")]
            commands["Darts RNNModel"] = [str(python), this_file, "--run", "darts", *arguments]
        environment = {**runner_environment(1), "PYTHONUNBUFFERED": "1"}
        seconds: dict[str, list[tuple[float, float]]] = {entrant: [] for entrant in commands}
        for repetition in range(repeats + 1):
            for entrant, entrant_command in commands.items():
                measured = _time_process(entrant_command, environment, folder)
                if repetition:  # the first one fills the caches of the file system and creates the database
                    seconds[entrant].append(measured)
    print("| entrant | first epoch, s | whole process, s |\n|---|---:|---:|")
    for entrant, pairs in seconds.items():
        first, total = (statistics.median(values) for values in zip(*pairs, strict=True))
        print(f"| {entrant} | {first:.1f} | {total:.1f} |")
    if len(seconds) == 2:
        ours, others = seconds.values()
        ratio = statistics.median(other[1] / own[1] for own, other in zip(ours, others, strict=True))
        print(f"\nDarts takes {ratio:.2f} times as long, the median of the ratios within a round.")


def _time_process(command: list[str], environment: dict[str, str], folder: Path) -> tuple[float, float]:
    """Returns the seconds to the first epoch and to the end of a process."""
    started, first = time.perf_counter(), float("nan")
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(_FIRST_EPOCH):
                first = time.perf_counter() - started
        if process.wait() != 0:
            raise RuntimeError(f"{command} failed: {(folder / 'log.txt').read_text()[-2000:]}")
    return first, time.perf_counter() - started


def _run_ours(arguments: list[str]) -> None:
    """Runs the command line, with a display that prints only the end of the first epoch."""
    from forecaster.progress import Progress, display
    from pipelines.cli import main as run_command

    class FirstEpoch(Progress):
        printed = False

        def update(self, completed: int, detail: str = "") -> None:
            if completed >= _STEPS_PER_EPOCH and not self.printed:
                self.printed = True
                print(_FIRST_EPOCH)

    display.create_display = FirstEpoch  # type: ignore[assignment]
    run_command(arguments)


def _run_darts(csv_path: Path, case: dict[str, Any], target: Path) -> None:
    """Trains Darts' recurrent network on the same file, as in `runner_darts.py`, and saves it."""
    import pandas as pd
    from cases import SpeedCase
    from darts import TimeSeries
    from pytorch_lightning import Callback
    from runner_darts import QUIET_TRAINER, make_model
    from torch.utils.data import RandomSampler

    class FirstEpoch(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 0:
                print(_FIRST_EPOCH)

    frame = pd.read_csv(csv_path, parse_dates=["ds"])
    series = TimeSeries.from_dataframe(frame, time_col="ds", value_cols="y").astype("float32")
    sized = SpeedCase(**case)
    model = make_model(sized)
    model.trainer_params = {**model.trainer_params, **QUIET_TRAINER, "callbacks": [FirstEpoch()]}
    sampler = RandomSampler(
        range(sized.length - sized.context), replacement=True, num_samples=_STEPS_PER_EPOCH * sized.batch
    )
    loader_options = {"sampler": sampler, "shuffle": False, "pin_memory": False}
    epochs = sized.steps // _STEPS_PER_EPOCH
    model.fit([series], epochs=epochs, verbose=False, dataloader_kwargs=loader_options)
    assert model.trainer.global_step == sized.steps
    model.save(str(target))


if __name__ == "__main__":
    main()
