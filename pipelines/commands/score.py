"""The command `forecaster score`: scores of the forecasts in an archive, when their actuals are known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from forecaster.errors import InputError
from pipelines.commands.batch import refuse_passwords
from pipelines.commands.console import format_table, get_table_width, write_table
from pipelines.commands.options import RootOptions, validate_output_paths, validate_table_paths
from pipelines.commands.schedule import ScheduleOptions, schedule_command

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_SCHEDULE_OPTIONS, _ROOT_OPTIONS = ScheduleOptions(), RootOptions()


@Parameter(name="*")
@dataclass(frozen=True)
class ScoreOutputs:
    """Where the scores are written besides the terminal."""

    out: Path | None = None
    "File for the table of scores (CSV or Parquet)."
    json: Path | None = None
    "File for the same scores as JSON."


_OUTPUTS = ScoreOutputs()


def score(
    archive: str,
    actuals: str,
    *,
    by: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    as_of: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    rival: str | None = None,
    y_column: str = "y",
    outputs: ScoreOutputs = _OUTPUTS,
    schedule_options: ScheduleOptions = _SCHEDULE_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Scores the forecasts of an archive that `forecaster batch` wrote; rows without an actual so far are counted, not scored.

    Parameters
    ----------
    archive
        The folder of the archive, a path or URL.
    actuals
        A CSV file, a Parquet file or a folder of Parquet files with the columns of the archive; earlier rows are
        ignored.
    by
        Groups of the scores: step, version, as_of, or columns of the actuals, separated by commas (`--by step,region`).
    as_of
        A night; may be repeated. By default all finished nights.
    rival
        Another archive, such as that of a challenger: both are scored on the rows that both have.
    y_column
        Column with the actuals.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("schedule_options", "root_options")}
    from forecaster.batch.actuals import read_actuals
    from forecaster.batch.scores import score_archive
    from pipelines.sources import derive_model_name

    validate_table_paths(out=outputs.out)
    validate_output_paths(json=outputs.json)
    refuse_passwords(archive=archive, actuals=actuals, rival=rival)
    groups = tuple(name.strip() for text in by for name in text.split(",") if name.strip())
    if len(set(groups)) < len(groups):
        raise InputError(
            f"Expected each group once in --by; found {', '.join(groups)}. Leave out the repeated one.", where="by"
        )
    if schedule_options.cron is not None:
        schedule_command(
            f"score-{derive_model_name(Path(archive).name)}", "score", arguments, schedule_options, root_options
        )
        return
    nights = as_of or None
    observed = read_actuals(actuals, archive, as_of=nights, by=groups, y_column=y_column)
    table = score_archive(archive, observed, as_of=nights, by=groups, rival=rival)
    _print_scores(table)
    write_table(outputs.out, table.to_pandas)
    if outputs.json is not None:
        _write_json(outputs.json, archive, table)


def _print_scores(table: pa.Table) -> None:
    """Prints the scores, one row per group, and how many forecasts have an actual."""
    names = table.column_names
    groups = names[: names.index("rows")]
    rows = [
        (
            ", ".join("-" if row[name] is None else str(row[name]) for name in groups) or "all",
            [_format_score(row[name]) for name in names[len(groups) :]],
        )
        for row in table.to_pylist()
    ]
    print("\n".join(format_table(names[len(groups) :], rows, width=get_table_width())))
    total, scored = (sum(table.column(name).to_pylist()) for name in ("rows", "scored"))
    if scored < total:
        print(f"{scored} of {total} rows have an actual ({100 * scored / total:.1f} %); the others are not scored yet")


def _format_score(value: float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_json(path: Path, archive: str, table: pa.Table) -> None:
    from json import dumps

    from forecaster.storage import atomic
    from forecaster.storage.addresses import redact_addresses

    content: dict[str, Any] = {"archive": redact_addresses(archive), "scores": table.to_pylist()}
    atomic.write_text(path, dumps(content, indent=1) + "\n")
    path.chmod(0o644)
