"""The command `forecaster compare`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forecaster.errors import InputError
from pipelines.commands.console import warn
from pipelines.commands.options import RootOptions, validate_output_paths

_ROOT_OPTIONS = RootOptions()


def compare(
    *runs: str,
    html: Path | None = None,
    json: Path | None = None,
    plot: Path | None = None,
    series: str | None = None,
    different_data: Annotated[bool, Parameter(negative="")] = False,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Holds runs against the first of them: headline metrics, a paired test on raw errors, differences of specification.

    Parameters
    ----------
    runs
        Two or more, each an MLflow run by its id (the beginning is enough), or a registered model as NAME@ALIAS or NAME@VERSION.
    html
        Where to write a page with tables and pictures; it holds all it shows.
    json
        Where to write everything for machines.
    plot
        A folder to draw forecasts of one series and the error by step ahead into; made if need be.
    series
        The series to draw; the first, if none is named.
    different_data
        Compare runs that were trained or tested on different data too; what differs is told.
    """
    validate_output_paths(html=html, json=json)
    if plot is not None and not os.access(plot if plot.is_dir() else plot.parent, os.W_OK):
        raise InputError(
            f"Expected a folder for --plot {plot}; found none that can be written. Name another.", where="plot"
        )
    from pipelines.comparison import report
    from pipelines.comparison.compare import compare_runs, plot_error_by_horizon, plot_overlay
    from pipelines.tracking.reader import load_run

    root = where.open_existing_root()
    found = compare_runs([load_run(told, root) for told in runs], allow_different_data=different_data)
    for line in found.messages:
        warn(line)
    for line in report.render_comparison_lines(found):
        print(line)
    if json is not None:
        json.write_text(report.render_comparison_json(found))
    if html is not None:
        html.write_text(report.render_comparison_html(found, series=series))
    if plot is not None and found.shared_backtest is not None:
        plot.mkdir(exist_ok=True)
        plot_overlay(found, series).savefig(plot / "forecasts.png")
        plot_error_by_horizon(found).savefig(plot / "error_by_horizon.png")
