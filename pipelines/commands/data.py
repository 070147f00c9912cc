"""The command `data check`: looks at data before anything is trained on them."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from forecaster.errors import InputError
from pipelines.commands.console import print_panel_summary
from pipelines.commands.options import DataOptions

data_app = App(name="data", help="Looks at data before anything is trained on them.")
_DATA_OPTIONS = DataOptions()


@data_app.command
def check(
    data: str | None = None,
    *,
    covariate: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    static: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    channel: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    reading: DataOptions = _DATA_OPTIONS,
) -> None:
    """Checks data as train would, and tells what they are like. Ends with 0 if they can be used, with 2 if not.

    Parameters
    ----------
    data
        As for train.
    covariate
        A column that is known ahead; may be given again.
    static
        A column that says one thing of a whole series; may be given again.
    channel
        A column of which the past alone is known; may be given again.
    """
    from pipelines.sources import read_panel

    try:
        panel = read_panel(reading.to_data_source(data)._replace(covariates=covariate, static=static, channels=channel))
    except InputError as error:
        print(f"{data or reading.sql}: cannot be used ({error.code})")
        raise
    print(f"{data or reading.sql}: can be used{', as repaired' if panel.repairs else ''}")
    print_panel_summary(panel)
