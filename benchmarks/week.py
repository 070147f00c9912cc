"""Two weeks of a service that is trained again at night: real hourly series, with a change planted in the middle.

    python benchmarks/week.py               six minutes with one thread
    python benchmarks/week.py --dry         other series and fewer nights, for looking: nothing is written down

Reads m4_hourly.parquet from `shared/data` beside (or in) the checkout, and says so where it is not there. Works in a root that
is gone afterwards. Writes benchmarks/results/week.md and docs/pictures/week.png.

Every midnight the day's truth comes to the ledger, the monitor looks at each model, those that are trained again are trained,
judged by the gate and promoted or not, and whoever is champion then forecasts the day that follows.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from simulation import (
    FROZEN,
    HOURS_PER_DAY,
    IF_NEEDED,
    NAIVE,
    NIGHTLY,
    PlannedShift,
    SimulationPlan,
    SimulationResult,
    simulate_nights,
    table_row,
)

from forecaster.data.frames.panel import to_panel
from forecaster.evaluation.plots import ACTUAL_COLOR, BASELINE_COLOR, FORECAST_COLOR, GRID_COLOR, HISTORY_COLOR
from forecaster.metrics import seasonal_error
from forecaster.series import Panel
from forecaster.shapes import Float64

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "week.md"
PICTURE = ROOT / "docs" / "pictures" / "week.png"
FIRST_DAY = pd.Timestamp("2026-01-05")  # as if all series had begun at this midnight
MAX_LEVEL_TO_SEASONAL_ERROR = 10.0  # seasonal naive errors to the level
TRAINING_STEPS = 960  # steps of the long series that M4 gave to train on; its test is left alone
LINE_STYLES = {  # for long they are the same model: what is drawn later is drawn thinner
    NAIVE: {"color": BASELINE_COLOR, "linestyle": "--", "linewidth": 1.2},
    FROZEN: {"color": HISTORY_COLOR, "linewidth": 5.0, "alpha": 0.35},
    NIGHTLY: {"color": ACTUAL_COLOR, "linewidth": 2.6},
    IF_NEEDED: {"color": FORECAST_COLOR, "linewidth": 1.2},
}
SHIFTS = (PlannedShift("level and daily peak", 1.4, 3), PlannedShift("level alone", 1.4, 0))
PLAN = SimulationPlan(
    history=23,
    nights=16,
    change=6,
    spec_fields={
        "context": 7 * HOURS_PER_DAY,
        "network": {"hidden": 32},
        "training": {"steps": 500, "epoch_steps": 100, "batch": 64, "valid_windows": 2},
    },
)


def read_series(folder: Path, *, first: int) -> Panel:
    """Every fourth of the long series that are not `has_low_variation`, as if they had begun at one midnight, up to M4's own cutoff."""
    frame = pd.read_parquet(folder / "m4_hourly.parquet")
    frame["step"] = frame.groupby("unique_id").cumcount()
    long = frame.groupby("unique_id")["step"].transform("size") > TRAINING_STEPS
    skipped = HOURS_PER_DAY // 2  # they begin at noon
    frame = frame[long & frame["step"].between(skipped, TRAINING_STEPS - 1)]
    frame["ds"] = FIRST_DAY + pd.to_timedelta(frame["step"] - skipped, unit="h")
    panel = to_panel(frame[["unique_id", "ds", "y"]], freq="h")
    return panel._replace(
        series=[one for one in panel.series if not has_low_variation(one.y[: PLAN.history * HOURS_PER_DAY])][first::4]
    )


def has_low_variation(y: Float64[np.ndarray, "step"]) -> bool:
    """Whether 40 % of the level is many times what a day differs from the day before: no forecaster lives through that."""
    return float(y.mean()) > MAX_LEVEL_TO_SEASONAL_ERROR * seasonal_error(y, season=HOURS_PER_DAY)


def main() -> None:
    """Lives through two weeks twice, prints what happened, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="other series and fewer nights; nothing is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("The series are not there: expected the folder shared/data in or beside the checkout.")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    panel, plan = read_series(folder, first=2 if options.dry else 0), PLAN
    if options.dry:
        plan = plan._replace(nights=10, change=3)
    lived = []
    for change in SHIFTS[:1] if options.dry else SHIFTS:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            lived.append(simulate_nights(panel, change, plan, Path(place)))
        print(f"{change.name}: {time.perf_counter() - started:.0f} s")
        text = format_report(lived, series=len(panel.series), threads=options.threads)
        if not options.dry:
            RESULT.write_text(text)
            plot_weeks(lived).savefig(PICTURE)
    print(text)


def format_report(results: Sequence[SimulationResult], *, series: int, threads: int) -> str:
    """All of it as Markdown."""
    plan = results[0].plan
    head = f"""# Two weeks of nights

`python benchmarks/week.py`: {series} series of m4_hourly, {plan.history} days known on the first night, {plan.nights}
nights; torch {torch.__version__}, CPU, {threads} thread{"s" * (threads > 1)}. The first preset of hourly data made small,
chosen on other series of the set: `{json.dumps(plan.spec_fields)}`.
In the night to day {plan.change + 1} the truth changes for good. MASE is that of the day after the night, in units of the
seasonal naive error before the first night, times {results[0].change.factor:g} from the change on. Gate and monitor are as they
come; if_needed is trained when the monitor calls, or {plan.new_steps} new hours are there.

![MASE by day, and what was done in which night](../../docs/pictures/week.png)
"""
    return head + "".join(_format_shift(one) for one in results)


def _format_shift(result: SimulationResult) -> str:
    first = result.plan.change
    spans = {
        "before": slice(0, first),
        "days 1-3 after": slice(first, first + 3),
        "days 4-7": slice(first + 3, first + 7),
    }
    spans["later"] = slice(first + 7, None)
    what = f"all series times {result.change.factor:g}"
    what += f", and every second one {result.change.hours} hours later" if result.change.hours else ""
    lines = [f"\n## A change of {result.change.name}: {what}\n"]
    lines += [
        f"| MASE | {' | '.join(spans)} | trained | promoted | refused though better than the champion | seconds a training |"
    ]
    lines += ["|---" * (len(spans) + 5) + "|"]
    for name, errors in result.errors.items():
        cells = [f"{errors[span].mean():.3f}" if errors[span].size else "" for span in spans.values()]
        trained = [one for one in result.nights.get(name, ()) if one.verdict is not None]
        seconds = f"{np.median([one.seconds for one in trained]):.1f}" if trained else ""
        counts = [len(trained), sum(one.promoted for one in trained), sum(one.proved_better for one in trained)]
        told = " | ".join(map(str, counts)) if trained else " | | "
        lines.append(f"| {name} | {' | '.join(cells)} | {told} | {seconds} |")
    lines += ["", f"| day | {' | '.join(result.errors)} | noticed of frozen | nightly | if_needed |", "|---" * 8 + "|"]
    for night in range(result.plan.nights):
        until = {name: found[: night + 1] for name, found in result.nights.items()}
        mase = {name: float(found[night].mean()) for name, found in result.errors.items()}
        lines.append(table_row(night, until, mase, emphasis="**" if night == first else ""))
    return "\n".join(lines) + "\n"


def plot_weeks(results: Sequence[SimulationResult]) -> Figure:
    """MASE by day under each change, and below it who noticed, was refused or promoted in which night."""
    figure = Figure(figsize=(10, 4.4 * len(results)), dpi=110, layout="constrained")
    for axes, below, one in zip(*_paired_axes(figure, len(results)), results, strict=True):
        days = np.arange(1, one.plan.nights + 1)
        for name, errors in one.errors.items():
            axes.plot(days, errors.mean(axis=1), label=name.replace("_", " "), **LINE_STYLES[name])
        axes.set_title(f"A change of {one.change.name} from day {one.plan.change + 1} on", loc="left", fontsize=11)
        axes.set_ylabel("MASE of the day")
        axes.legend(frameon=False, ncols=4, loc="upper right")
        axes.margins(y=0.2)
        rows = {f"{name.replace('_', ' ')}: {what}": (name, what) for name, what in _EVENT_ROWS}
        for place, (name, what) in enumerate(rows.values()):
            nights = [night for night, each in zip(days, one.nights[name], strict=True) if _EVENT_TESTS[what](each)]
            marker = {"promoted": "^", "refused": "x", "noticed": "s"}[what]
            below.scatter(nights, [-place] * len(nights), color=LINE_STYLES[name]["color"], marker=marker, s=34)
        below.set_yticks(range(0, -len(rows), -1), list(rows), fontsize=8)
        below.set_ylim(-len(rows) + 0.4, 0.6)
        below.set_xlabel("day, and the night before it")
        below.xaxis.set_major_locator(MultipleLocator(1))
        for each in (axes, below):
            each.axvline(one.plan.change + 0.5, color=BASELINE_COLOR, linewidth=0.8, linestyle=":")
            each.grid(axis="y", color=GRID_COLOR, linewidth=0.6)
            each.spines[["top", "right"]].set_visible(False)
            each.set_axisbelow(True)
        axes.tick_params(labelbottom=False)
    return figure


_EVENT_ROWS = (
    (FROZEN, "noticed"),
    (NIGHTLY, "refused"),
    (NIGHTLY, "promoted"),
    (IF_NEEDED, "noticed"),
    (IF_NEEDED, "refused"),
    (IF_NEEDED, "promoted"),
)
_EVENT_TESTS = {
    "noticed": lambda night: bool(night.findings),
    "refused": lambda night: night.verdict is not None and not night.promoted,
    "promoted": lambda night: night.promoted,
}


def _paired_axes(figure: Figure, count: int) -> tuple[Sequence[Axes], Sequence[Axes]]:
    found = figure.subplots(2 * count, 1, gridspec_kw={"height_ratios": [3, 1.2] * count}, squeeze=False)[:, 0]
    for above, below in zip(found[::2], found[1::2], strict=True):
        below.sharex(above)
    return found[::2], found[1::2]


if __name__ == "__main__":
    main()
