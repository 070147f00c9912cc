"""The command `forecaster synthetic`: generated series of documented families."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pipelines.commands.console import write_table
from pipelines.commands.options import validate_counts, validate_output_paths, validate_table_paths

if TYPE_CHECKING:
    import pandas as pd

    from forecaster.series import Panel


def synthetic(
    *,
    families: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    series: int = 20,
    length: int = 120,
    season: int = 12,
    seed: int = 0,
    out: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Generates series of documented families, for tests, teaching and training. Without --out and --plot it lists the families.

    Parameters
    ----------
    families
        Names of families (`random_walk counts`); all of them by default.
    series
        Number of series of each family.
    length
        Steps per series.
    season
        Season in steps, 1 for none. It decides the frequency: 12 gives months, 7 days, 24 hours, any other number integer steps.
    seed
        Random seed: the same options give the same series.
    out
        File for the series (CSV or Parquet): `unique_id, ds, y`, and the columns of families with covariates or channels.
    plot
        File for a plot of three series of each family (PNG).
    """
    from forecaster.synthetic.generation import find_family, generate_panel

    validate_counts(series=series, length=length, season=season)
    validate_table_paths(out=out)
    validate_output_paths(plot=plot)
    names = families or _list_families(season)
    if out is None and plot is None:
        width = max(map(len, names)) + 2
        for name in names:
            print(f"{name:{width}}{find_family(name).description}")
        return
    panels = {name: generate_panel(name, num_series=series, length=length, season=season, seed=seed) for name in names}
    write_table(out, lambda: _build_table(panels))
    if plot is not None:
        from forecaster.evaluation.plots import plot_panels

        title = f"{series} series of {length} steps, season {season}, seed {seed}"
        plot_panels({name: panel.series for name, panel in panels.items()}, title=title).savefig(plot)


def _list_families(season: int) -> tuple[str, ...]:
    """Returns the names of all families that have series of this season."""
    from forecaster.frequency.timestamps import is_integer_frequency
    from forecaster.synthetic.generation import FAMILIES
    from forecaster.synthetic.sampling import SeriesShape

    has_calendar = not is_integer_frequency(SeriesShape(num_series=1, length=1, season=season).freq)
    return tuple(name for name in FAMILIES if has_calendar or name != "calendar")


def _build_table(panels: dict[str, Panel]) -> pd.DataFrame:
    import pandas as pd

    from forecaster.data.frames.panel import to_frame

    return pd.concat([to_frame(panel) for panel in panels.values()], ignore_index=True)
