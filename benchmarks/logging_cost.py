"""Cost of tracking: the same training with MLflow and without, alternating in one process.

    python benchmarks/logging_cost.py            # writes benchmarks/results/logging.md
    python benchmarks/logging_cost.py --pairs 3 --ordinary 0 --out somewhere.md

Measures the whole training that a user waits for, on the data set hospital, from reading the data to the bundle: once with
everything that a run records (parameters, curves of every step and epoch, scores, tables, plots, card, data set) in a SQLite
store, and once with a run that records nothing. Fit, backtest and scores are the same; plots are rendered only for the run. The
cost is the ratio of the two medians. The report also has the CPU time, which depends less on other programs, and the time of the
fit alone with and without Lightning's logger: that part grows with the length of the training, the rest does not.

The training of configs/hospital_small.yaml takes seconds, so the fixed cost of a run weighs most in it; the target is for this
training. The report also has `forecaster train hospital --horizon 12`, which tries the variants of the preset (for these only
the errors are recorded) and trains the best.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from forecaster.registry.registry import create_client
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.selection import SpecSelection, select_spec
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel, read_spec
from pipelines.training import train as training

HERE = Path(__file__).parent
MAX_RATIO = 1.05  # target: time with tracking divided by time without
HOSPITAL = DataSource("hospital")
SpecSelector = Callable[[Panel], SpecSelection]


class NullRun:
    """A run that records nothing and has no logger."""

    id = "0" * 32

    def __init__(self) -> None:
        self.logger = self

    def __getattr__(self, name: str) -> Any:
        return _do_nothing


def _do_nothing(*_: Any, **__: Any) -> None:
    """Accepts any arguments and records nothing."""


class TrainingTime(NamedTuple):
    """Seconds of one training."""

    total: float
    fit: float
    cpu: float  # CPU time of the whole training


@contextlib.contextmanager
def open_null_run(*_: Any, **__: Any) -> Iterator[NullRun]:
    """Replaces `open_run`."""
    yield NullRun()


def time_training(select_spec: SpecSelector, folder: Path, *, tracked: bool) -> TrainingTime:
    """Times a training from the data to the bundle, including the selection of the specification."""
    fits: list[float] = []
    fit = training.fit

    def timed_fit(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        if not tracked:
            options["loggers"] = []
        result = fit(*arguments, **options)
        fits.append(time.perf_counter() - started)
        return result

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(training, "fit", timed_fit))
        if not tracked:
            stack.enter_context(mock.patch.object(training, "open_run", open_null_run))
        started, cpu_started = time.perf_counter(), time.process_time()
        panel = read_panel(HOSPITAL)
        selection = select_spec(panel)
        options = training.TrainOptions(candidates=selection.candidates)
        training.train(HOSPITAL, selection.spec, Root(folder), options, panel=panel)
        return TrainingTime(time.perf_counter() - started, sum(fits), time.process_time() - cpu_started)


class TimingPairs(NamedTuple):
    """Times of trainings with and without tracking, measured alternately."""

    tracked: list[TrainingTime]
    untracked: list[TrainingTime]


def measure_pairs(select_spec: SpecSelector, pairs: int, *, warm: bool = False) -> TimingPairs:
    """Runs `pairs` trainings with and without tracking, alternately.

    Each pair has its own seed, so that no training resumes an earlier one.
    """
    tracked: list[TrainingTime] = []
    plain: list[TrainingTime] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        create_client(Root(root).store_uri)
        # Pair -1 is short; it warms up imports and is not counted.
        for number in range(0 if warm else -1, pairs):
            changes = {"seed": number + 1} | ({"steps": 100} if number < 0 else {})
            order = [True, False] if number % 2 else [False, True]
            for is_tracked in order:
                training_time = time_training(
                    partial(_with_training_options, select_spec=select_spec, changes=changes), root, tracked=is_tracked
                )
                if number >= 0:
                    (tracked if is_tracked else plain).append(training_time)
                summary = f"{training_time.total:.2f} s, fit {training_time.fit:.2f} s, CPU {training_time.cpu:.2f} s"
                print(f"pair {number + 1}: {'tracked' if is_tracked else 'plain':8} {summary}")
    return TimingPairs(tracked, plain)


def format_report(short: TimingPairs, default: TimingPairs | None, spec: Spec) -> str:
    """Formats the result as Markdown."""
    lines = [
        "# What tracking costs a training",
        "",
        f"`python benchmarks/logging_cost.py`: configs/hospital_small.yaml, {spec.training.steps} steps at most, "
        f"{len(short.tracked)} pairs of trainings, alternating in one process; MLflow on SQLite. Medians in seconds.",
        "",
        *_format_table(short),
        "",
        f"Target: at most {MAX_RATIO:g} from data to bundle. The fixed costs (opening the run, tables, plots, card) weigh less "
        "in longer trainings.",
        "",
    ]
    if default is not None:
        lines += [
            f"The same for `forecaster train hospital --horizon {spec.horizon}`, {len(default.tracked)} pairs: the variants of "
            "the preset are tried, and the best is trained and recorded.",
            "",
            *_format_table(default),
            "",
        ]
    return "\n".join(lines)


def _format_table(pairs: TimingPairs) -> list[str]:
    rows = []
    for label, field in (("data to bundle", "total"), ("fit alone", "fit"), ("data to bundle, CPU time", "cpu")):
        tracked, plain = (
            statistics.median(getattr(training_time, field) for training_time in times) for times in pairs
        )
        rows.append(f"| {label} | {plain:.2f} | {tracked:.2f} | {tracked / plain:.3f} |")
    return ["| | without | with | ratio |", "|---|---|---|---|", *rows]


def _with_training_options(panel: Panel, *, select_spec: SpecSelector, changes: Mapping[str, int]) -> SpecSelection:
    """Returns the selected specification with other training options (seed, steps)."""
    selection = select_spec(panel)
    training_spec = selection.spec.training.model_copy(update=dict(changes))
    return selection._replace(spec=selection.spec.model_copy(update={"training": training_spec}))


def main() -> None:
    """Measures, prints and writes the report; exits with 1 if tracking costs more than the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=6, help="number of pairs of configs/hospital_small.yaml")
    parser.add_argument("--ordinary", type=int, default=2, help="number of pairs of `forecaster train hospital`")
    parser.add_argument("--steps", type=int, default=None, help="steps of each training of configs/hospital_small.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "logging.md")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    spec = read_spec(HERE.parent / "configs" / "hospital_small.yaml")
    if options.steps is not None:
        spec = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": options.steps})})
    short = measure_pairs(lambda _: SpecSelection(spec), options.pairs)
    preset = partial(select_spec, name=HOSPITAL.name, horizon=spec.horizon)
    text = format_report(short, measure_pairs(preset, options.ordinary, warm=True) if options.ordinary else None, spec)
    options.out.write_text(text)
    print(text)
    tracked, plain = (statistics.median(training_time.total for training_time in times) for times in short)
    raise SystemExit(int(tracked / plain > MAX_RATIO))


if __name__ == "__main__":
    main()
