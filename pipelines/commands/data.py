"""The command `forecaster data check`: validates data before a training."""

from __future__ import annotations

from datetime import UTC, datetime

from cyclopts import App

from forecaster.errors import InputError
from pipelines.commands.column_options import ColumnOptions
from pipelines.commands.console import print_panel_summary, warn, warn_about_partial_periods
from pipelines.commands.options import DataOptions

data_app = App(name="data", help="Validates data before a training.")
_DATA_OPTIONS, _COLUMN_OPTIONS = DataOptions(), ColumnOptions()


@data_app.command
def check(
    data: str | None = None,
    *,
    column_options: ColumnOptions = _COLUMN_OPTIONS,
    data_options: DataOptions = _DATA_OPTIONS,
) -> None:
    """Validates data as train does, and prints a summary. Exits with 0 if the data can be used, with 2 if not.

    Parameters
    ----------
    data
        Input data, as for train.
    """
    from forecaster.frequency.clock import compute_days_ahead
    from pipelines.sources import read_panel

    now = datetime.now(UTC)
    try:
        panel = read_panel(column_options.apply(data_options.to_data_source(data)), now=now)
    except InputError as error:
        print(f"{data or data_options.sql}: cannot be used ({error.code})")
        raise
    print(f"{data or data_options.sql}: can be used{', as repaired' if panel.repairs else ''}")
    print_panel_summary(panel)
    warn_about_partial_periods(panel, now=now)
    days_ahead = compute_days_ahead(panel.cutoff, panel.freq, now)
    if days_ahead:
        warn(
            f"the data end {days_ahead:.0f} days after the present; above `days_ahead` of its policy, the gate promotes no model "
            "of such data. Correct the timestamps, or declare them there"
        )
