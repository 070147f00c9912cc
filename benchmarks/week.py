"""Two weeks of a service with nightly retraining: real hourly series with a change in the middle.

    python benchmarks/week.py               six minutes with one thread
    python benchmarks/week.py --dry         other series and fewer nights; no file is written

Reads m4_hourly.parquet from `shared/data` beside (or in) the checkout, and exits with a message if it is missing. Works in a
temporary root. Writes benchmarks/results/week.md and docs/pictures/week.png.

Every midnight the actuals of the day are recorded in the ledger and monitoring reports on each model. Models that are due are
retrained, judged by the gate and promoted or not. The champion of each model then forecasts the next day.
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
from dataclasses import replace
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
FIRST_DAY = pd.Timestamp("2026-01-05")  # all series start at this midnight
MAX_LEVEL_TO_SEASONAL_ERROR = 10.0  # largest ratio of the level to the seasonal naive error
TRAINING_STEPS = 960  # training steps of M4's long series; M4's test part is not used
LINE_STYLES = {  # the models are the same for long, so later lines are drawn thinner
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
    """Returns every fourth of the long series, without those that `has_low_variation`, up to M4's own cutoff.

    All series start at the same midnight here.
    """
    frame = pd.read_parquet(folder / "m4_hourly.parquet")
    frame["step"] = frame.groupby("unique_id").cumcount()
    is_long = frame.groupby("unique_id")["step"].transform("size") > TRAINING_STEPS
    skipped = HOURS_PER_DAY // 2  # the series begin at noon
    frame = frame[is_long & frame["step"].between(skipped, TRAINING_STEPS - 1)]
    frame["ds"] = FIRST_DAY + pd.to_timedelta(frame["step"] - skipped, unit="h")
    panel = to_panel(frame[["unique_id", "ds", "y"]], freq="h")
    return replace(
        panel,
        series=[series for series in panel.series if not has_low_variation(series.y[: PLAN.history * HOURS_PER_DAY])][
            first::4
        ],
    )


def has_low_variation(y: Float64[np.ndarray, "step"]) -> bool:
    """Returns whether 40 % of the level is many times the difference between successive days, a shift no model copes with."""
    return float(y.mean()) > MAX_LEVEL_TO_SEASONAL_ERROR * seasonal_error(y, season=HOURS_PER_DAY)


def main() -> None:
    """Simulates two weeks under each change, prints the report and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="other series and fewer nights; no file is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("Expected the folder shared/data in or beside the checkout; found none. Put m4_hourly.parquet there.")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    panel, plan = read_series(folder, first=2 if options.dry else 0), PLAN
    if options.dry:
        plan = plan._replace(nights=10, change=3)
    results = []
    for change in SHIFTS[:1] if options.dry else SHIFTS:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as root_folder:
            results.append(simulate_nights(panel, change, plan, Path(root_folder)))
        print(f"{change.name}: {time.perf_counter() - started:.0f} s")
        text = format_report(results, series=len(panel.series), threads=options.threads)
        if not options.dry:
            RESULT.write_text(text)
            plot_weeks(results).savefig(PICTURE)
    print(text)


def format_report(results: Sequence[SimulationResult], *, series: int, threads: int) -> str:
    """Formats the report as Markdown."""
    plan = results[0].plan
    head = f"""# Two weeks of nightly retraining

`python benchmarks/week.py`: {series} series of m4_hourly, {plan.history} days of history on the first night, {plan.nights}
nights; torch {torch.__version__}, CPU, {threads} thread{"s" * (threads > 1)}. The first preset for hourly data made small,
selected on other series of the set: `{json.dumps(plan.spec_fields)}`.
In the night to day {plan.change + 1} the series change permanently. MASE is that of the day after the night, in units of the
seasonal naive error before the first night, times {results[0].change.factor:g} from the change on. Gate and monitor have their
default settings; if_needed is trained when the monitor calls for it, or after {plan.new_steps} new hours.

![MASE by day, and the events of each night](../../docs/pictures/week.png)
"""
    return head + "".join(_format_shift(result) for result in results)


def _format_shift(result: SimulationResult) -> str:
    first_changed = result.plan.change
    day_ranges = {
        "before": slice(0, first_changed),
        "days 1-3 after": slice(first_changed, first_changed + 3),
        "days 4-7": slice(first_changed + 3, first_changed + 7),
    }
    day_ranges["later"] = slice(first_changed + 7, None)
    description = f"all series times {result.change.factor:g}"
    description += f", and every second series {result.change.hours} hours later" if result.change.hours else ""
    lines = [f"\n## A change of {result.change.name}: {description}\n"]
    lines += [
        f"| MASE | {' | '.join(day_ranges)} | trained | promoted | rejected though better than the champion | "
        "seconds a training |"
    ]
    lines += ["|---" * (len(day_ranges) + 5) + "|"]
    for name, errors in result.errors.items():
        cells = [
            f"{errors[day_range].mean():.3f}" if errors[day_range].size else "" for day_range in day_ranges.values()
        ]
        trained = [night_result for night_result in result.nights.get(name, ()) if night_result.verdict is not None]
        seconds = f"{np.median([night_result.seconds for night_result in trained]):.1f}" if trained else ""
        counts = [
            len(trained),
            sum(night_result.promoted for night_result in trained),
            sum(night_result.proved_better for night_result in trained),
        ]
        counts_cells = " | ".join(map(str, counts)) if trained else " | | "
        lines.append(f"| {name} | {' | '.join(cells)} | {counts_cells} | {seconds} |")
    lines += [
        "",
        f"| day | {' | '.join(result.errors)} | findings for frozen | nightly | if_needed |",
        "|---" * 8 + "|",
    ]
    for night in range(result.plan.nights):
        until = {name: values[: night + 1] for name, values in result.nights.items()}
        mase = {name: float(values[night].mean()) for name, values in result.errors.items()}
        lines.append(table_row(night, until, mase, emphasis="**" if night == first_changed else ""))
    return "\n".join(lines) + "\n"


def plot_weeks(results: Sequence[SimulationResult]) -> Figure:
    """Plots MASE by day under each change, and below it the nights with findings, rejections and promotions."""
    figure = Figure(figsize=(10, 4.4 * len(results)), dpi=110, layout="constrained")
    for axes, event_axes, result in zip(*_paired_axes(figure, len(results)), results, strict=True):
        days = np.arange(1, result.plan.nights + 1)
        for name, errors in result.errors.items():
            axes.plot(days, errors.mean(axis=1), label=name.replace("_", " "), **LINE_STYLES[name])
        axes.set_title(
            f"A change of {result.change.name} from day {result.plan.change + 1} on", loc="left", fontsize=11
        )
        axes.set_ylabel("MASE of the day")
        axes.legend(frameon=False, ncols=4, loc="upper right")
        axes.margins(y=0.2)
        rows = {f"{name.replace('_', ' ')}: {event}": (name, event) for name, event in _EVENT_ROWS}
        for row, (name, event) in enumerate(rows.values()):
            nights = [
                night for night, outcome in zip(days, result.nights[name], strict=True) if _EVENT_TESTS[event](outcome)
            ]
            marker = {"promoted": "^", "rejected": "x", "findings": "s"}[event]
            event_axes.scatter(nights, [-row] * len(nights), color=LINE_STYLES[name]["color"], marker=marker, s=34)
        event_axes.set_yticks(range(0, -len(rows), -1), list(rows), fontsize=8)
        event_axes.set_ylim(-len(rows) + 0.4, 0.6)
        event_axes.set_xlabel("day, with the night before it")
        event_axes.xaxis.set_major_locator(MultipleLocator(1))
        for panel_axes in (axes, event_axes):
            panel_axes.axvline(result.plan.change + 0.5, color=BASELINE_COLOR, linewidth=0.8, linestyle=":")
            panel_axes.grid(axis="y", color=GRID_COLOR, linewidth=0.6)
            panel_axes.spines[["top", "right"]].set_visible(False)
            panel_axes.set_axisbelow(True)
        axes.tick_params(labelbottom=False)
    return figure


_EVENT_ROWS = (
    (FROZEN, "findings"),
    (NIGHTLY, "rejected"),
    (NIGHTLY, "promoted"),
    (IF_NEEDED, "findings"),
    (IF_NEEDED, "rejected"),
    (IF_NEEDED, "promoted"),
)
_EVENT_TESTS = {
    "findings": lambda night: bool(night.findings),
    "rejected": lambda night: night.verdict is not None and not night.promoted,
    "promoted": lambda night: night.promoted,
}


def _paired_axes(figure: Figure, count: int) -> tuple[Sequence[Axes], Sequence[Axes]]:
    all_axes = figure.subplots(2 * count, 1, gridspec_kw={"height_ratios": [3, 1.2] * count}, squeeze=False)[:, 0]
    for error_axes, event_axes in zip(all_axes[::2], all_axes[1::2], strict=True):
        event_axes.sharex(error_axes)
    return all_axes[::2], all_axes[1::2]


if __name__ == "__main__":
    main()
