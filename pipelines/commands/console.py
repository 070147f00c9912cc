"""What people see on the terminal, and the tables that commands write."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from forecaster.evaluation.significance import SignificanceResult
    from forecaster.series import Panel
    from pipelines.promotion.gate import Verdict
    from pipelines.tuning.search import TuningResult

_OWN_PACKAGES = ("forecaster", "pipelines", "serving")


def configure_logging() -> None:
    """Keeps other libraries' advertisements and notices off the terminal; their warnings stay."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(_OWN_PACKAGES))
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def write_table(path: Path | None, build_table: Callable[[], pd.DataFrame]) -> None:
    """Writes a table by the ending of its path, if there is one."""
    if path is None:
        return
    table = build_table()
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_csv(path, index=False)


def print_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Scores by forecaster, a row each."""
    if not scores:
        return
    names = list(next(iter(scores.values())))
    print(f"{'':16}" + "".join(f"{name.upper() if name != 'smape' else 'sMAPE':>10}" for name in names))
    for forecaster, values in scores.items():
        print(
            f"{forecaster:16}"
            + "".join(f"{'-' if value is None else format(value, '.4g'):>10}" for value in values.values())
        )


def print_verdict(verdict: Verdict) -> None:
    """What the gate says, a line for each check."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    for check in verdict.checks:
        print(f"{check.name:16}{marks[check.passed]:8}{check.reason}")


_SCORE_COLUMNS = {
    "mase": "MASE",
    "rmsse": "RMSSE",
    "smape": "sMAPE",
    "mae": "MAE",
    "owa": "OWA",
    "wql": "WQL",
    "coverage_80": "in 80%",
    "coverage_95": "in 95%",
}  # columns of a contest, with their headings


def print_backtest_scores(
    scores: Mapping[str, Mapping[str, float]], comparisons: Mapping[str, SignificanceResult]
) -> None:
    """Scores by forecaster, a row each, and how the errors of the others differ from the first's."""
    width = max(map(len, scores)) + 2
    heads = [head for metric, head in _SCORE_COLUMNS.items() if any(metric in values for values in scores.values())]
    print(f"{'':{width}}" + "".join(f"{head:>9}" for head in [*heads, "+MASE", "p"]))
    for name, values in scores.items():
        told = [_format_value(values.get(metric), ".4g") for metric, head in _SCORE_COLUMNS.items() if head in heads]
        if name in comparisons:
            one = comparisons[name]
            told += [_format_value(one.difference, "+.4g"), "<0.001" if one.p < 0.001 else _format_value(one.p, ".3f")]
        print(f"{name:{width}}" + "".join(f"{text:>9}" for text in told))
    tests = sorted({one.test for one in comparisons.values()})
    if tests:
        print(f"+MASE: more than {next(iter(scores))}'s, on the same windows; p of no difference: {', '.join(tests)}")


def _format_value(value: float | None, format_spec: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, format_spec)


def make_progress_printer(*, interval_s: float = 10.0) -> Callable[[str, int, int], None]:
    """Tells how far a long work is: a line that counts on a terminal, elsewhere a line every so many seconds."""
    bar, told = sys.stderr.isatty(), time.monotonic()

    def count(what: str, done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if bar and (done == total or now - told > 0.1):
            end = "\n" if done == total else ""
            print(f"\rforecaster: {what}: {done} of {total} histories", end=end, file=sys.stderr, flush=True)
            told = now
        elif not bar and now - told > interval_s:
            warn(f"{what}: {done} of {total} histories")
            told = now

    return count


def print_tuning_result(result: TuningResult) -> None:
    """The five best trials, and how the best did beside seasonal naive."""
    from pipelines.tuning.search_space import format_params

    print(f"{'trial':>5}{'rollout':>10}{'epochs':>8}{'seconds':>9}  what was tried")
    for one in result.ranked_trials[:5]:
        print(f"{one.trial:>5}{one.value:>10.4g}{one.epochs:>8}{one.seconds or 0.0:>9.1f}  {format_params(one.params)}")
    print(
        f"best    {result.best_value:.4g}, seasonal naive {result.seasonal_naive_value:.4g} on the same validation windows (MASE)"
    )
    print(f"written {result.output_path}\nrun     {result.run_id}")


def print_status(line: str) -> None:
    """What is going on, in place of what was said last; nothing clears it."""
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write(f"\r\x1b[K{line[:width]}")
    sys.stderr.flush()


def print_panel_summary(panel: Panel) -> None:
    """What a panel is like."""
    from forecaster.data.summary import summarize_panel

    told = summarize_panel(panel)
    constant = f"{len(told.constant_ids)}" + (f" ({told.constant_ids[0]!r} first)" if told.constant_ids else "")
    lines = {
        "series": f"{told.num_series}",
        "frequency": told.freq,
        "zone": told.zone or "none",
        "span": f"{told.start} to {told.end}",
        "length": f"{told.min_length} to {told.max_length} steps, median {told.median_length}",
        "missing": f"{told.missing_steps} of {told.total_steps} values",
        "constant": constant,
        "covariates": f"{', '.join(told.covariates)}, {told.covariate_horizon} steps ahead"
        if told.covariates
        else "none",
        "static": ", ".join(told.static) or "none",
        "channels": ", ".join(f"{name} ({missing} missing)" for name, missing in told.missing_by_channel.items())
        or "none",
        "suggested": f"season {told.suggested_season}, horizon {told.suggested_horizon}",
    }
    for name, line in lines.items():
        print(f"{name:12}{line}")
    for repair in panel.repairs:
        print(f"{'repaired':12}{repair}")


def warn(message: str) -> None:
    """A line for people, apart from the result."""
    print(f"forecaster: {message}", file=sys.stderr)
