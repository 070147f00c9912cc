"""Time of training five members together, as a multiple of one member and of the arithmetic limit.

    PYTHONPATH=. python benchmarks/speed/members.py                    five minutes on a free core
    PYTHONPATH=. python benchmarks/speed/members.py --rounds 1 --hidden 32

Each round fits one member, five members, and one member with a batch five times as large, in alternating order. The last one does
the arithmetic of five members at the throughput that the kernel reaches on so many rows: the arithmetic limit. A step is that of
a long fit without a short one; `fit` is the long fit as a whole, with validation. Writes benchmarks/results/members.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from timing import time_once

from forecaster.series import Panel, Series
from forecaster.spec import Spec
from forecaster.training.fit import fit

RESULTS = Path(__file__).parent.parent / "results" / "members.md"
NUM_SERIES, LENGTH, HORIZON, SEASON, BATCH, MEMBERS = 16, 500, 24, 24, 64, 5
SHORT_STEPS, STEPS_OF_LONG_SEGMENTS, STEPS_OF_SINGLE_VALUES = 25, 225, 75
MAX_SMALL_HIDDEN, MAX_RATIO, MAX_RATIO_TO_LIMIT = 64, 3.0, 1.2


class MemberCase(NamedTuple):
    """A network and what it reads; one value per step of the recurrence, or segments, decoded directly as in the presets."""

    cell: str
    hidden: int
    context: int
    segment: int

    @property
    def steps(self) -> int:
        """Optimiser steps of the long fit."""
        return STEPS_OF_SINGLE_VALUES if self.segment == 1 else STEPS_OF_LONG_SEGMENTS


class CaseTimings(NamedTuple):
    """CPU milliseconds, one entry per round.

    Attributes:
        steps: Of an optimiser step, by variant.
        fits: Of the whole long fit, by variant.
    """

    steps: dict[str, np.ndarray]
    fits: dict[str, np.ndarray]

    def ratio(self, first: str, second: str) -> float:
        """Returns the median ratio of the steps of the same round."""
        return float(np.median(self.steps[first] / self.steps[second]))


def main() -> None:
    """Measures all cases, prints the report and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    panel = make_panel()
    fit_once(panel, make_spec(MemberCase("gru", 8, 24, 12), "members", steps=2))  # warm-up: imports
    lines = [*header(options)]
    for cell, hidden, (context, segment) in product(("gru", "lstm"), options.hidden, ((96, 12), (48, 1))):
        case = MemberCase(cell, hidden, context, segment)
        lines.append(format_row(case, time_case(panel, case, rounds=options.rounds)))
        print(lines[-1], flush=True)
    options.output.write_text("\n".join([*lines, ""]))


def make_panel() -> Panel:
    """Returns hourly series with a noisy daily cycle."""
    rng, clock = np.random.default_rng(0), np.arange(LENGTH)
    return Panel(
        [
            Series(
                f"wave {index}",
                pd.Timestamp("2026-01-01"),
                "h",
                10 + np.sin(2 * np.pi * (clock + index) / SEASON) + 0.1 * rng.normal(size=LENGTH),
            )
            for index in range(NUM_SERIES)
        ],
        "h",
    )


def make_spec(case: MemberCase, variant: str, *, steps: int) -> Spec:
    """Returns the specification of a variant: one, members or large batch."""
    fields: dict[str, Any] = {
        "name": "members",
        "context": case.context,
        "horizon": HORIZON,
        "segment": case.segment,
        "network": {"cell": case.cell, "hidden": case.hidden},
        "members": MEMBERS if variant == "members" else 1,
    }
    training: dict[str, Any] = {
        "steps": steps,
        "epoch_steps": 25,
        "batch": BATCH * (MEMBERS if variant == "large batch" else 1),
    }
    if case.segment > 1:
        fields |= {"decoder": "direct", "head": {"kind": "point", "loss": "mae"}, "transform": "log"}
        fields |= {"scaling": "level_season", "base": "zero"}
        training |= {"schedule": "cosine", "average": 0.99, "weighting": "seasonal_error", "recent": 2.0}
    return Spec.parse(fields | {"training": training}, where="members.py")


def fit_once(panel: Panel, spec: Spec) -> None:
    """Trains on the CPU."""
    fit(panel, spec, accelerator="cpu")


def time_case(panel: Panel, case: MemberCase, *, rounds: int) -> CaseTimings:
    """Measures all variants of a case, in alternating order."""
    steps: dict[str, list[float]] = defaultdict(list)
    fits: dict[str, list[float]] = defaultdict(list)
    for variant in _alternate(("one", "members", "large batch"), rounds):
        short, long = (
            time_once(partial(fit_once, panel, make_spec(case, variant, steps=count))).cpu * 1000
            for count in (SHORT_STEPS, case.steps)
        )
        steps[variant].append((long - short) / (case.steps - SHORT_STEPS))
        fits[variant].append(long)
    return CaseTimings(*({name: np.array(times) for name, times in part.items()} for part in (steps, fits)))


def _alternate(variants: Sequence[str], rounds: int) -> Iterator[str]:
    for index in range(rounds):
        yield from variants if index % 2 == 0 else reversed(variants)


def header(options: argparse.Namespace) -> list[str]:
    """Returns the lines before the rows."""
    return [
        "# Five members",
        "",
        f"`python benchmarks/speed/members.py --rounds {options.rounds} --threads {options.threads}`: {NUM_SERIES} series of "
        f"{LENGTH}, batch {BATCH}, horizon {HORIZON}, torch {torch.__version__}, CPU. CPU milliseconds per optimiser step, "
        f"medians over rounds. *Limit* is the time of one member with a batch of {BATCH * MEMBERS}: the arithmetic of "
        f"{MEMBERS} members, without the further work that separate weights cause. The goal is at most {MAX_RATIO:g} times one "
        f"member up to {MAX_SMALL_HIDDEN} hidden units, and at most {MAX_RATIO_TO_LIMIT:g} times the limit above. Segments of 12 "
        "are decoded directly, as in the presets; segments of 1 are rolled out, so nearly all their time is arithmetic.",
        "",
        "| cell | hidden | context | segment | one | five | limit | five / one | limit / one | five / limit | fit, five / one "
        "| goal |",
        "|---" * 12 + "|",
    ]


def format_row(case: MemberCase, timings: CaseTimings) -> str:
    """Formats the row of a case."""
    one, members, limit = (np.median(timings.steps[name]) for name in ("one", "members", "large batch"))
    ratio, limit_ratio = timings.ratio("members", "one"), timings.ratio("members", "large batch")
    is_met = ratio <= MAX_RATIO if case.hidden <= MAX_SMALL_HIDDEN else limit_ratio <= MAX_RATIO_TO_LIMIT
    fit_ratio = np.median(timings.fits["members"] / timings.fits["one"])
    return (
        f"| {case.cell} | {case.hidden} | {case.context} | {case.segment} | {one:.2f} | {members:.2f} | {limit:.2f} | "
        f"{ratio:.2f} | {timings.ratio('large batch', 'one'):.2f} | {limit_ratio:.2f} | {fit_ratio:.2f} | "
        f"{'met' if is_met else 'not met'} |"
    )


if __name__ == "__main__":
    sys.exit(main())
