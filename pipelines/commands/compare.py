"""The command `forecaster compare`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pipelines.commands.console import format_table, get_table_width, warn
from pipelines.commands.options import RootOptions, is_plot_folder, validate_output_paths, validate_plot_path

_ROOT_OPTIONS = RootOptions()


def compare(
    *runs: str,
    html: Path | None = None,
    json: Path | None = None,
    plot: Path | None = None,
    series: str | None = None,
    different_data: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Compares runs with the first of them: headline metrics, a paired test on raw errors, differences of specification.

    Parameters
    ----------
    runs
        Two or more runs, each an MLflow run id (its beginning is enough), or a registered model as NAME@ALIAS or NAME@VERSION.
    html
        File for a self-contained HTML page with tables and plots.
    json
        File for the whole comparison as JSON.
    plot
        A file (x.png) for the error by step ahead, or for the forecasts of the series that --series names; or a folder
        (plots/) for both, which is created.
    series
        The series whose forecasts are drawn; by default the first.
    different_data
        Also compare runs that were trained or tested on different data; the differences are printed.
    """
    validate_output_paths(html=html, json=json)
    validate_plot_path(plot)
    from pipelines.comparison import report
    from pipelines.comparison.compare import compare_runs, plot_error_by_horizon, plot_overlay
    from pipelines.tracking.reader import load_run

    root = root_options.open_existing_root()
    comparison = compare_runs([load_run(reference, root) for reference in runs], allow_different_data=different_data)
    for message in comparison.messages:
        warn(message)
    for line in report.render_comparison_lines(comparison, format_table=partial(format_table, width=get_table_width())):
        print(line)
    if json is not None:
        json.write_text(report.render_comparison_json(comparison))
    if html is not None:
        html.write_text(report.render_comparison_html(comparison, series=series))
    if plot is not None and comparison.shared_backtest is None:
        warn(f"nothing is drawn in {plot}: the runs have no windows in common")
    elif plot is not None and is_plot_folder(plot):
        plot.mkdir(exist_ok=True)
        plot_overlay(comparison, series).savefig(plot / "forecasts.png")
        plot_error_by_horizon(comparison).savefig(plot / "error_by_horizon.png")
    elif plot is not None:
        figure = plot_error_by_horizon(comparison) if series is None else plot_overlay(comparison, series)
        figure.savefig(plot)
