"""The command `forecaster compare`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forecaster.errors import InputError
from pipelines.commands.console import warn
from pipelines.commands.options import Where, can_be_written

_WHERE = Where()


def compare(
    *runs: str,
    html: Path | None = None,
    json: Path | None = None,
    plot: Path | None = None,
    series: str | None = None,
    different_data: Annotated[bool, Parameter(negative="")] = False,
    where: Where = _WHERE,
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
    can_be_written(html=html, json=json)
    if plot is not None and not os.access(plot if plot.is_dir() else plot.parent, os.W_OK):
        raise InputError(
            f"Expected a folder for --plot {plot}; found none that can be written. Name another.", where="plot"
        )
    from pipelines.comparison import report
    from pipelines.comparison.compare import by_horizon, compared, overlay
    from pipelines.tracking.reader import recorded

    root = where.existing()
    found = compared([recorded(told, root) for told in runs], different_data=different_data)
    for line in found.told:
        warn(line)
    for line in report.as_lines(found):
        print(line)
    if json is not None:
        json.write_text(report.as_json(found))
    if html is not None:
        html.write_text(report.as_html(found, series=series))
    if plot is not None and found.shared is not None:
        plot.mkdir(exist_ok=True)
        overlay(found, series).savefig(plot / "forecasts.png")
        by_horizon(found).savefig(plot / "error_by_horizon.png")
