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

    from forecaster.evaluation.significance import Comparison
    from forecaster.series import Panel
    from pipelines.promotion.gate import Verdict
    from pipelines.tuning.search import Tuned

_OURS = ("forecaster", "pipelines", "serving")


def hush() -> None:
    """Keeps other libraries' advertisements and notices off the terminal; their warnings stay."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(_OURS))
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")


def write_table(path: Path | None, make: Callable[[], pd.DataFrame]) -> None:
    """Writes a table by the ending of its path, if there is one."""
    if path is None:
        return
    table = make()
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


_CONTEST = {
    "mase": "MASE",
    "rmsse": "RMSSE",
    "smape": "sMAPE",
    "mae": "MAE",
    "owa": "OWA",
    "wql": "WQL",
    "coverage_80": "in 80%",
    "coverage_95": "in 95%",
}  # columns of a contest, with their headings


def print_contest(scores: Mapping[str, Mapping[str, float]], against: Mapping[str, Comparison]) -> None:
    """Scores by forecaster, a row each, and how the errors of the others differ from the first's."""
    width = max(map(len, scores)) + 2
    heads = [head for metric, head in _CONTEST.items() if any(metric in values for values in scores.values())]
    print(f"{'':{width}}" + "".join(f"{head:>9}" for head in [*heads, "+MASE", "p"]))
    for name, values in scores.items():
        told = [_told(values.get(metric), ".4g") for metric, head in _CONTEST.items() if head in heads]
        if name in against:
            one = against[name]
            told += [_told(one.difference, "+.4g"), "<0.001" if one.p < 0.001 else _told(one.p, ".3f")]
        print(f"{name:{width}}" + "".join(f"{text:>9}" for text in told))
    tests = sorted({one.test for one in against.values()})
    if tests:
        print(f"+MASE: more than {next(iter(scores))}'s, on the same windows; p of no difference: {', '.join(tests)}")


def _told(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else format(value, form)


def counter(*, every: float = 10.0) -> Callable[[str, int, int], None]:
    """Tells how far a long work is: a line that counts on a terminal, elsewhere a line every so many seconds."""
    bar, told = sys.stderr.isatty(), time.monotonic()

    def count(what: str, done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if bar and (done == total or now - told > 0.1):
            end = "\n" if done == total else ""
            print(f"\rforecaster: {what}: {done} of {total} histories", end=end, file=sys.stderr, flush=True)
            told = now
        elif not bar and now - told > every:
            warn(f"{what}: {done} of {total} histories")
            told = now

    return count


def print_tuned(tuned: Tuned) -> None:
    """The five best trials, and how the best did beside seasonal naive."""
    from pipelines.tuning.search_space import told

    print(f"{'trial':>5}{'rollout':>10}{'epochs':>8}{'seconds':>9}  what was tried")
    for one in tuned.best[:5]:
        print(f"{one.trial:>5}{one.value:>10.4g}{one.epochs:>8}{one.seconds or 0.0:>9.1f}  {told(one.params)}")
    print(f"best    {tuned.value:.4g}, seasonal naive {tuned.naive:.4g} on the same validation windows (MASE)")
    print(f"written {tuned.out}\nrun     {tuned.run_id}")


def status(line: str) -> None:
    """What is going on, in place of what was said last; nothing clears it."""
    width = shutil.get_terminal_size().columns - 1
    sys.stderr.write(f"\r\x1b[K{line[:width]}")
    sys.stderr.flush()


def print_summary(panel: Panel) -> None:
    """What a panel is like."""
    from forecaster.data.summary import summarise

    told = summarise(panel)
    constant = f"{len(told.constant)}" + (f" ({told.constant[0]!r} first)" if told.constant else "")
    lines = {
        "series": f"{told.series}",
        "frequency": told.freq,
        "zone": told.zone or "none",
        "span": f"{told.first} to {told.last}",
        "length": f"{told.shortest} to {told.longest} steps, median {told.median}",
        "missing": f"{told.missing} of {told.steps} values",
        "constant": constant,
        "covariates": f"{', '.join(told.covariates)}, {told.ahead} steps ahead" if told.covariates else "none",
        "static": ", ".join(told.static) or "none",
        "channels": ", ".join(f"{name} ({missing} missing)" for name, missing in told.channels.items()) or "none",
        "suggested": f"season {told.season}, horizon {told.horizon}",
    }
    for name, line in lines.items():
        print(f"{name:12}{line}")
    for repair in panel.repairs:
        print(f"{'repaired':12}{repair}")


def warn(message: str) -> None:
    """A line for people, apart from the result."""
    print(f"forecaster: {message}", file=sys.stderr)
