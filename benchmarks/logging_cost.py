"""What tracking costs a training: the same fit with MLflow and without, turn by turn, in one process.

    python benchmarks/logging_cost.py            # writes benchmarks/results/logging.md
    python benchmarks/logging_cost.py --pairs 3 --ordinary 0 --out somewhere.md

Timed is what a person waits for: a training on the data set hospital from reading the data to the bundle, once with everything
that a run records (parameters, curves of every step and epoch, scores, tables, pictures, card, data set) into a SQLite store,
once with a run that records nothing. Fit, backtest and scores are the same; pictures are rendered for the run alone. The
ratio of the medians of the two is the cost. Processor time is told beside it, which other programs disturb less, and the fit
alone, with Lightning's logger and without: that part grows with the training, the other does not.

The training of configs/hospital.yaml takes seconds: what is there once for each run weighs most in it, and the aim is for it.
Told beside it is what `forecaster train hospital --horizon 12` does: it tries the variants of the preset, which no run records
but for their errors, and trains the best.
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
from forecaster.spec import Spec
from pipelines.settings import Root
from pipelines.sources import DataSource, read_spec
from pipelines.training import train as training
from pipelines.training.spec_selection import SpecSelection, select_spec

HERE = Path(__file__).parent
MAX_RATIO = 1.05  # of the time without tracking
HOSPITAL = DataSource("hospital")


class NullRun:
    """A run that records nothing, and has no logger."""

    id = "0" * 32

    def __init__(self) -> None:
        self.logger = self

    def __getattr__(self, name: str) -> Any:
        return _do_nothing


def _do_nothing(*_: Any, **__: Any) -> None:
    """Records nothing."""


class TrainingTime(NamedTuple):
    """Seconds of one training."""

    total: float
    fit: float
    cpu: float  # of the whole


@contextlib.contextmanager
def open_null_run(*_: Any, **__: Any) -> Iterator[NullRun]:
    """In the place of `open_run`."""
    yield NullRun()


def time_training(select_spec: Callable[[], SpecSelection], folder: Path, *, tracked: bool) -> TrainingTime:
    """A training from its data to its bundle, the choice of its specification included."""
    fits: list[float] = []
    fit = training.fit

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        if not tracked:
            options["loggers"] = []
        found = fit(*arguments, **options)
        fits.append(time.perf_counter() - started)
        return found

    with contextlib.ExitStack() as held:
        held.enter_context(mock.patch.object(training, "fit", timed))
        if not tracked:
            held.enter_context(mock.patch.object(training, "open_run", open_null_run))
        started, used = time.perf_counter(), time.process_time()
        chosen = select_spec()
        training.train(HOSPITAL, chosen.spec, Root(folder), candidates=chosen.candidates)
        return TrainingTime(time.perf_counter() - started, sum(fits), time.process_time() - used)


class TimingPairs(NamedTuple):
    """Trainings with tracking and without, turn by turn."""

    tracked: list[TrainingTime]
    untracked: list[TrainingTime]


def measure_pairs(select_spec: Callable[[], SpecSelection], pairs: int, *, warm: bool = False) -> TimingPairs:
    """As many trainings of either kind, taking turns; each pair has a seed of its own, so that nothing is gone on with."""
    tracked: list[TrainingTime] = []
    plain: list[TrainingTime] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        create_client(Root(root).store_uri)
        for number in range(0 if warm else -1, pairs):  # the first, a short one, pays for imports and is not counted
            changed = {"seed": number + 1} | ({"steps": 100} if number < 0 else {})
            turns = [True, False] if number % 2 else [False, True]
            for one in turns:
                taken = time_training(partial(_with_training_options, select_spec, changed), root, tracked=one)
                if number >= 0:
                    (tracked if one else plain).append(taken)
                spent = f"{taken.total:.2f} s, fit {taken.fit:.2f} s, processor {taken.cpu:.2f} s"
                print(f"pair {number + 1}: {'tracked' if one else 'plain':8} {spent}")
    return TimingPairs(tracked, plain)


def format_report(short: TimingPairs, default: TimingPairs | None, spec: Spec) -> str:
    """The result as Markdown."""
    lines = [
        "# What tracking costs a training",
        "",
        f"`python benchmarks/logging_cost.py`: configs/hospital.yaml, {spec.training.steps} steps at most, "
        f"{len(short.tracked)} pairs of trainings, turn by turn in one process; MLflow on SQLite. Medians in seconds.",
        "",
        *_format_table(short),
        "",
        f"Aim: at most {MAX_RATIO:g} from data to bundle. What does not grow with the training (opening the run, tables, "
        "pictures, card) weighs less the longer it is.",
        "",
    ]
    if default is not None:
        lines += [
            f"The same of `forecaster train hospital --horizon {spec.horizon}`, {len(default.tracked)} pairs: variants of the "
            "preset are tried, and the best is trained and recorded.",
            "",
            *_format_table(default),
            "",
        ]
    return "\n".join(lines)


def _format_table(pairs: TimingPairs) -> list[str]:
    rows = []
    for what, place in (("data to bundle", 0), ("fit alone", 1), ("data to bundle, processor time", 2)):
        ours, theirs = (statistics.median(one[place] for one in some) for some in pairs)
        rows.append(f"| {what} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.3f} |")
    return ["| | without | with | ratio |", "|---|---|---|---|", *rows]


def _with_training_options(select_spec: Callable[[], SpecSelection], changes: Mapping[str, int]) -> SpecSelection:
    """What was chosen, with another seed or length of its training."""
    found = select_spec()
    recipe = found.spec.training.model_copy(update=dict(changes))
    return found._replace(spec=found.spec.model_copy(update={"training": recipe}))


def main() -> None:
    """Measures, prints, writes; ends with 1 where tracking costs too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--ordinary", type=int, default=2, help="pairs of `forecaster train hospital`")
    parser.add_argument("--steps", type=int, default=None, help="of each training of configs/hospital.yaml")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "logging.md")
    given = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    spec = read_spec(HERE.parent / "configs" / "hospital.yaml")
    if given.steps is not None:
        spec = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": given.steps})})
    short = measure_pairs(lambda: SpecSelection(spec), given.pairs)
    preset = partial(select_spec, HOSPITAL, horizon=spec.horizon)
    text = format_report(short, measure_pairs(preset, given.ordinary, warm=True) if given.ordinary else None, spec)
    given.out.write_text(text)
    print(text)
    tracked, plain = (statistics.median(one.total for one in some) for some in short)
    raise SystemExit(int(tracked / plain > MAX_RATIO))


if __name__ == "__main__":
    main()
