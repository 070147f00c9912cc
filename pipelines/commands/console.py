"""Output on the terminal, and the tables that commands write."""

from __future__ import annotations

import gzip
import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from forecaster.errors import rename_arguments

if TYPE_CHECKING:
    import pandas as pd

    from forecaster.evaluation.significance import SignificanceResult
    from forecaster.series import Panel
    from pipelines.promotion.verdict import Verdict
    from pipelines.tuning.results import TuningResult

_OPTIONS_OF_ARGUMENTS = {
    "freq": "--freq",
    "zone": "--zone",
    "columns": "--id-column, --ds-column, --y-column",
    "blend": "--blend",
    "members": "--members",
    "season": "--season",
    "test_windows": "--test-windows",
}
_MIN_FAST_ROWS = 10_000  # with fewer, the import of pyarrow takes longer
_OWN_PACKAGES = ("forecaster", "pipelines", "serving")


def configure_logging() -> None:
    """Hides the informational messages of other libraries on the terminal; their warnings remain."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(_OWN_PACKAGES))
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def name_options(message: str) -> str:
    """Returns a message of the library with the options of the command line instead of the arguments that it names."""
    return rename_arguments(message, _OPTIONS_OF_ARGUMENTS)


def write_table(path: Path | None, build_table: Callable[[], pd.DataFrame]) -> None:
    """Writes a table atomically, as Parquet, CSV or compressed CSV by the suffix of the path; does nothing without a path.

    The suffix is validated by `validate_table_paths`. If the disk is full, the previous file remains.
    """
    if path is None:
        return
    from forecaster.storage import atomic

    table = build_table()
    path, name = path.resolve(), path.name.lower()

    def write_content(file: IO[bytes]) -> None:
        if name.endswith(".parquet"):
            table.to_parquet(file, index=False)
        elif name.endswith(".gz"):
            file.write(gzip.compress("".join(iterate_csv(table)).encode()))
        else:
            file.writelines(text.encode() for text in iterate_csv(table))

    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_read_umask()
    atomic.write_file(path, write_content)
    path.chmod(mode)


def iterate_csv(table: pd.DataFrame) -> Iterator[str]:
    """Yields the text of a table as CSV, piece by piece; a long one is formatted by pyarrow, if it is installed."""
    from forecaster.installation import is_installed

    if len(table) < _MIN_FAST_ROWS or not is_installed("pyarrow"):
        yield table.to_csv(index=False)
        return
    from forecaster.batch import csv_text

    yield from csv_text.iterate_csv(table)


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def format_table(headings: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, width: int | None) -> list[str]:
    """Formats a table with right-aligned columns; columns that do not fit the width continue below, with the names repeated.

    Args:
        headings: Headings of the columns.
        rows: The name of each row, and its cells.
        width: Characters of a line; None for no limit.
    """
    name_width = max((len(name) for name, _ in rows), default=0)
    columns = [[heading, *(cells[index] for _, cells in rows)] for index, heading in enumerate(headings)]
    widths = [max(map(len, column)) + 2 for column in columns]
    blocks: list[list[int]] = [[]]
    for index, column_width in enumerate(widths):
        used = name_width + sum(widths[other] for other in blocks[-1])
        if width is not None and blocks[-1] and used + column_width > width:
            blocks.append([])
        blocks[-1].append(index)
    lines = []
    for number, block in enumerate(blocks):
        lines += [""] * (number > 0)
        for row, name in enumerate(["", *(name for name, _ in rows)]):
            cells = "".join(f"{columns[index][row]:>{widths[index]}}" for index in block)
            lines.append(f"{name:{name_width}}{cells}".rstrip())
    return lines


def get_table_width() -> int | None:
    """Returns the width of the terminal; None if the output goes to a file or another program, which get whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_scores(scores: Mapping[str, Mapping[str, float]], scale_note: str | None = None, *, season: int) -> None:
    """Prints the scores, one row per forecaster, the season of their scale, and a note on it."""
    if not scores:
        return
    headings = [_SCORE_COLUMNS.get(name, name.upper()) for name in next(iter(scores.values()))]
    rows = [(name, [_format_value(value, ".4g") for value in values.values()]) for name, values in scores.items()]
    print("\n".join(format_table(headings, rows, width=get_table_width())))
    if "perplexity" in next(iter(scores.values())):
        print(
            "accuracy, cross-entropy (nats) and perplexity of the next symbol given all before it; rollout: its accuracy"
        )
        return
    print(format_season(season))
    if scale_note is not None:
        print(scale_note)


def format_season(season: int) -> str:
    """Describes the season by which errors are scaled, and how it is set."""
    if season == 1:
        return "season  1 step (no season: errors are relative to those of the last value; set it with --season)"
    return f"season  {season} steps (MASE and RMSSE are relative to the errors of seasonal naive; set it with --season)"


def print_verdict(verdict: Verdict) -> None:
    """Prints the verdict of the gate, one line per check."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    for check in verdict.checks:
        print(f"{check.name:16}{marks[check.passed]:8}{check.reason}")


# The columns of a backtest by metric, with their headings.
_SCORE_COLUMNS = {
    "mase": "MASE",
    "rmsse": "RMSSE",
    "smape": "sMAPE",
    "mae": "MAE",
    "owa": "OWA",
    "wql": "WQL",
    "msis_95": "MSIS",
    "coverage_80": "in 80%",
    "coverage_95": "in 95%",
    "accuracy": "accuracy",
    "cross_entropy": "cross-entropy",
    "perplexity": "perplexity",
    "rollout_accuracy": "rollout",
}


def print_backtest_scores(
    scores: Mapping[str, Mapping[str, float]],
    comparisons: Mapping[str, SignificanceResult],
    dash_reasons: Sequence[str] = (),
    scale_note: str | None = None,
    *,
    season: int,
) -> None:
    """Prints the scores, one row per forecaster, how the errors of the others differ from the first's, season and dashes."""
    columns = {
        metric: heading
        for metric, heading in _SCORE_COLUMNS.items()
        if any(metric in values for values in scores.values())
    }
    rows = []
    for name, values in scores.items():
        row = [_format_value(values.get(metric), ".4g") for metric in columns]
        if name in comparisons:
            comparison = comparisons[name]
            p_value = "<0.001" if comparison.p < 0.001 else _format_value(comparison.p, ".3f")
            row += [_format_value(comparison.difference, "+.4g"), p_value]
        else:
            row += ["", ""]  # the model itself
        rows.append((name, row))
    print("\n".join(format_table([*columns.values(), "+MASE", "p"], rows, width=get_table_width())))
    tests = sorted({comparison.test for comparison in comparisons.values()})
    if tests:
        model_name = next(iter(scores))
        print(
            f"+MASE: difference from the MASE of {model_name} on the same windows; p of no difference: {', '.join(tests)}"
        )
    print(format_season(season))
    if scale_note is not None:
        print(scale_note)
    for reason in dash_reasons:
        print(f"-: {reason}")


def _format_value(value: float | None, format_spec: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, format_spec)


def print_tuning_result(result: TuningResult) -> None:
    """Prints the five best trials, and the score of the best one with those of the baselines."""
    from pipelines.tuning.results import format_baseline_values
    from pipelines.tuning.search_space import format_params

    print(f"{'trial':>5}{'rollout':>10}{'epochs':>8}{'seconds':>9}  parameters")
    for trial in result.ranked_trials[:5]:
        print(
            f"{trial.trial:>5}{trial.value:>10.4g}{trial.epochs:>8}{trial.seconds or 0.0:>9.1f}  {format_params(trial.params)}"
        )
    print(
        f"best    {result.best_value:.4g}, {format_baseline_values(result.baseline_values)} on the same validation windows (MASE)"
    )
    print(format_season(result.season))
    print(f"written {result.output_path}\nrun     {result.run_id}")


def print_panel_summary(panel: Panel) -> None:
    """Prints a summary of a panel, and its repairs."""
    from forecaster.data.summary import summarize_panel

    summary = summarize_panel(panel)
    constant = f"{len(summary.constant_ids)}" + (
        f" (first: {summary.constant_ids[0]!r})" if summary.constant_ids else ""
    )
    covariates = f"{', '.join(summary.covariates)}, {summary.covariate_horizon} steps ahead"
    channels = ", ".join(f"{name} ({missing} missing)" for name, missing in summary.missing_by_channel.items())
    lines = {
        "series": f"{summary.num_series}",
        "frequency": summary.freq,
        "zone": summary.zone or "none",
        "span": f"{summary.start} to {summary.end}",
        "length": f"{summary.min_length} to {summary.max_length} steps, median {summary.median_length}",
        "missing": f"{summary.missing_steps} of {summary.total_steps} values",
        "constant": constant,
        "covariates": covariates if summary.covariates else "none",
        "static": ", ".join(summary.static) or "none",
        "channels": channels or "none",
        "suggested": f"season {summary.suggested_season}, horizon {summary.suggested_horizon}",
    }
    for name, line in lines.items():
        print(f"{name:12}{line}")
    for repair in panel.repairs:
        print(f"{'repaired':12}{repair}")


def warn_about_partial_periods(panel: Panel, *, now: datetime) -> None:
    """Prints warnings about incomplete last periods, unless their values were dropped, which the repairs report."""
    from forecaster.data.partial_periods import describe_partial_periods, find_partial_periods

    if panel.dropped_partial is not None:
        return
    for message in (
        describe_partial_periods(panel, find_partial_periods(panel, now=now)) if not panel.vocabulary else ()
    ):
        warn(f"{message}. Values of incomplete periods make forecasts wrong; --drop-partial treats them as missing")


def warn(message: str) -> None:
    """Prints a message to standard error, separate from the result."""
    print(f"forecaster: {message}", file=sys.stderr)
