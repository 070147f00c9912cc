"""False alarms and finds of the detection of incomplete last periods, on every public panel.

    python benchmarks/partial_periods.py        about two minutes on one core

Reads all panels in `shared/data` beside (or in) the checkout. Each panel ends at its real end and at each of the ENDS steps
before it; a finding there is a false alarm. Then the last value of one series in six, and of all, is multiplied by FRACTION.
Writes benchmarks/results/partial_periods.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from forecaster.data.calendar import default_season
from forecaster.data.frames.panel import to_panel
from forecaster.data.partial_periods import MIN_CHANGES, MIN_SCORE, find_last_drop, find_partial_periods
from forecaster.series import Panel

HERE = Path(__file__).parent
ENDS = 24  # steps before the end at which a panel is cut
SCORES = (4.0, MIN_SCORE, 6.0, 8.0)
FRACTION = 1 / 3  # of the last value that remains: a year with four months
ONE_IN = 6  # series whose last period is incomplete


def main() -> None:
    """Measures all panels, and writes the table."""
    rows = [
        "| panel | series | series and ends | falls, % of them, by score | ends with an alarm, by score | alarm at the real end "
        "| found, of one in six | found, of all | others found |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, panels in read_panels():
        rows.append(measure_panels(name, panels))
        print(rows[-1], flush=True)
    scores = ", ".join(f"{score:g}" for score in SCORES)
    text = "\n".join(
        [
            "# Incomplete last periods",
            "",
            f"`python benchmarks/partial_periods.py`. Panels as they are, cut at their real end and at each of the {ENDS} "
            f"steps before it, by the evidence of the values alone (no clock). Scores: {scores}; the product uses "
            f"{MIN_SCORE:g}. A fall is the finding in one series, which the service reports. An alarm is a finding in the "
            "panel: more falls at one timestamp than by chance. The last columns: the last value of one series in "
            f"{ONE_IN}, then of all series, times 1/3; the share of these that is found, and the number of other series "
            "that are reported.",
            "",
            *rows,
            "",
        ]
    )
    (HERE / "results" / "partial_periods.md").write_text(text)


def read_panels() -> Iterator[tuple[str, list[Panel]]]:
    """Reads every panel; a file with series of several frequencies gives several."""
    folder = next((path for path in (HERE.parent, HERE.parents[1]) if (path / "shared" / "data").is_dir()), None)
    if folder is None:
        sys.exit("Expected the folder shared/data in or beside the checkout; found none. Put the data sets there.")
    for path in sorted((folder / "shared" / "data").glob("*.parquet")):
        frame = pd.read_parquet(path)
        frames = [part for _, part in frame.groupby("unique_id")] if path.stem == "classics" else [frame]
        yield path.stem, [to_panel(part[["unique_id", "ds", "y"]]) for part in frames]
    for path in sorted((folder / "shared" / "data").glob("*.csv.gz")):
        wide = pd.read_csv(path, parse_dates=["date"])
        long = wide.melt("date", var_name="unique_id", value_name="y").rename(columns={"date": "ds"})
        yield path.name.removesuffix(".csv.gz"), [to_panel(long)]


def measure_panels(name: str, panels: list[Panel]) -> str:
    """Returns the row of one file."""
    count, cases = sum(len(panel.series) for panel in panels), 0
    falls, alarms, alarms_at_end = dict.fromkeys(SCORES, 0), dict.fromkeys(SCORES, 0), 0
    found = {ONE_IN: [0, 0, 0], 1: [0, 0, 0]}
    for panel in panels:
        season = default_season(panel.freq)
        for back in range(ENDS + 1):
            cut = cut_panel(panel, back)
            cases += len(cut.series)
            for score in SCORES:
                falls[score] += sum(find_last_drop(item.y, season, min_score=score) is not None for item in cut.series)
                alarm = bool(find_partial_periods(cut, min_score=score).by_drop)
                alarms[score] += alarm
                alarms_at_end += alarm and back == 0 and score == MIN_SCORE
        for one_in, totals in found.items():
            chosen = set(range(0, len(panel.series), one_in))
            partial = set(find_partial_periods(shrink_last_values(panel, chosen)).by_drop)
            totals[0] += len(chosen & partial)
            totals[1] += len(chosen)
            totals[2] += len(partial - chosen)
    shares = ", ".join(f"{100 * falls[score] / cases:.2f}" for score in SCORES)
    ends = ", ".join(str(alarms[score]) for score in SCORES)
    some, every = (f"{totals[0]} of {totals[1]}" for totals in (found[ONE_IN], found[1]))
    return (
        f"| {name} | {count} | {cases} | {shares} | {ends} of {len(panels) * (ENDS + 1)} | {alarms_at_end} | {some} | {every} | "
        f"{found[ONE_IN][2]} |"
    )


def cut_panel(panel: Panel, back: int) -> Panel:
    """Returns the panel without the last `back` steps of each series; short series are left out."""
    long_enough = [item for item in panel.series if len(item) > back + MIN_CHANGES + 1]
    return replace(panel, series=[item.take_first(len(item) - back) for item in long_enough])


def shrink_last_values(panel: Panel, indices: set[int]) -> Panel:
    """Returns the panel with the last values of some series multiplied by FRACTION."""
    series = [
        replace(item, y=np.append(item.y[:-1], item.y[-1] * FRACTION)) if index in indices else item
        for index, item in enumerate(panel.series)
    ]
    return replace(panel, series=series)


if __name__ == "__main__":
    main()
