"""The command `forecaster data check`: validates data before a training."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from cyclopts import App, Parameter

from forecaster.errors import InputError
from pipelines.commands.console import print_panel_summary, warn, warn_about_partial_periods
from pipelines.commands.options import DataOptions

data_app = App(name="data", help="Validates data before a training.")
_DATA_OPTIONS = DataOptions()


@data_app.command
def check(
    data: str | None = None,
    *,
    covariate: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    static: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    channel: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    data_options: DataOptions = _DATA_OPTIONS,
) -> None:
    """Validates data as train does, and prints a summary. Exits with 0 if the data can be used, with 2 if not.

    Parameters
    ----------
    data
        Input data, as for train.
    covariate
        A column of a known future covariate; may be repeated.
    static
        A column of a static feature, with one value per series; may be repeated.
    channel
        A column that is observed in the past only; may be repeated.
    """
    from forecaster.frequency.clock import compute_days_ahead
    from pipelines.sources import read_panel

    now = datetime.now(UTC)
    try:
        source = data_options.to_data_source(data)
        panel = read_panel(source._replace(covariates=covariate, static=static, channels=channel), now=now)
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
