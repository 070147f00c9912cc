"""The command `forecaster batch`: forecasts of a data set of any size, written as Parquet into an archive of nights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from forecaster.errors import InputError
from pipelines.commands.console import name_options, warn
from pipelines.commands.model_options import ResolvedModel, SeasonOptions, resolve_model
from pipelines.commands.options import RootOptions, validate_counts
from pipelines.commands.schedule import ScheduleOptions, schedule_command
from pipelines.scheduling.ray_tasks import WorkPlace, open_runner

if TYPE_CHECKING:
    from forecaster.batch.job import BatchReport, JobShare
    from forecaster.batch.manifest import BatchModel, ReadingOptions

_MAX_REJECTS = 0.01


@Parameter(name="*")
@dataclass(frozen=True)
class DatasetOptions:
    """How to read a data set of Parquet files."""

    freq: str | None = None
    "Frequency of the data, as for forecast; by default the model's. The pretrained network (base) needs it."
    id_column: str = "unique_id"
    "Column with the id of the series; it may be in the names of folders (`unique_id=7/`)."
    ds_column: str = "ds"
    "Column with the timestamps or the integer steps."
    y_column: str = "y"
    "Column with the values; an empty value is not observed."
    zone: str | None = None
    "Time zone (Europe/Berlin) of timestamps without a UTC offset; others are converted to it."
    layout: Literal["auto", "files", "shuffle"] = "auto"
    """Where the rows of a series are: auto finds it by the statistics of the files, and shuffles rows that are not together;
    files states that no series is in two files; shuffle always shuffles."""
    future: str | None = None
    """File or folder (Parquet or CSV, a path or URL) with the covariates after the histories: id, timestamp and one column each.
    Without it, rows of SOURCE after the last value are that future."""
    static: str | None = None
    "File or folder (Parquet or CSV, a path or URL) with the static features, one row per series, if SOURCE lacks them."

    def to_reading(self) -> ReadingOptions:
        """Returns the options of reading that a manifest records."""
        from forecaster.batch.manifest import ReadingOptions

        return ReadingOptions(
            id_column=self.id_column, ds_column=self.ds_column, y_column=self.y_column, freq=self.freq, zone=self.zone
        )


@Parameter(name="*")
@dataclass(frozen=True)
class WorkOptions:
    """How the work of a batch is divided."""

    on: WorkPlace = "local"
    "Where the work is done: processes of this machine, or tasks on the Ray cluster that RAY_ADDRESS names (docs/batch.md)."
    workers: int | None = None
    "Processes or tasks at the same time, each with a single-threaded engine; by default one for each core."
    shard: str | None = None
    "The part of this job, I/N with I from 0 to N-1, if a scheduler runs N jobs on one batch (see docs/batch.md)."
    shard_rows: int | None = None
    "Rows of the input that become one file; they bound the memory of a worker. By default 2000000."
    scratch: str | None = None
    "Folder of the temporary files of a shuffle; by default OUT/_shuffle."

    def parse_share(self) -> JobShare:
        """Returns the share of this job; raises InputError."""
        from forecaster.batch.job import JobShare

        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard or "0/1")
        if match is None or not int(match[1]) < int(match[2]):
            raise InputError(
                f"Expected --shard I/N with I from 0 to N-1; found {self.shard!r}. Write for example --shard 0/16.",
                where="shard",
            )
        return JobShare(int(match[1]), int(match[2]))


_DATASET_OPTIONS, _WORK_OPTIONS, _SEASON_OPTIONS = DatasetOptions(), WorkOptions(), SeasonOptions()
_SCHEDULE_OPTIONS, _ROOT_OPTIONS = ScheduleOptions(), RootOptions()


def batch(
    model: str,
    source: str,
    *,
    out: str,
    as_of: str | None = None,
    horizon: int | None = None,
    level: Annotated[tuple[float, ...], Parameter(negative="", show_default=False)] = (),
    quantiles: Annotated[tuple[float, ...], Parameter(negative="", show_default=False)] = (),
    limit: int | None = None,
    max_rejects: float = _MAX_REJECTS,
    dataset_options: DatasetOptions = _DATASET_OPTIONS,
    work_options: WorkOptions = _WORK_OPTIONS,
    season_options: SeasonOptions = _SEASON_OPTIONS,
    schedule_options: ScheduleOptions = _SCHEDULE_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Forecasts a data set of Parquet files in constant memory; the same command continues a batch that was interrupted.

    Exits with 0 if the forecasts are written, and with 3 if more series than --max-rejects have none. One folder holds the
    forecasts of many nights, which `forecaster score` compares with the actuals.

    Parameters
    ----------
    model
        A bundle folder, or a registered model as NAME or NAME@ALIAS; `base` for the pretrained network.
    source
        A folder of Parquet files with any subfolders, or one file; a path, or the URL of an object store (s3://...).
    out
        Folder of the archive: forecasts in `as_of=.../part-*.parquet`, series without a forecast in `_rejects`; a path or URL.
    as_of
        The date of the forecasts, or a moment (2026-01-31T02:30); by default today in UTC.
    horizon
        Steps ahead; by default the model's.
    level
        An interval in percent; may be repeated: `--level 80` writes the columns `forecaster-lo-80` and `forecaster-hi-80`.
    quantiles
        A quantile between 0 and 1; may be repeated: `--quantiles 0.1` writes the column `forecaster-q-0.1`.
    limit
        Forecast the first series only, for a trial.
    max_rejects
        Series without a forecast that are tolerated: a share below 1, or a number.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("schedule_options", "root_options")}
    from forecaster.batch.job import DEFAULT_SHARD_ROWS, BatchJob, run_batch, validate_rejects
    from forecaster.batch.workers import count_cores
    from forecaster.progress.display import create_display

    validate_counts(horizon=horizon)
    for name, number in (("workers", work_options.workers), ("limit", limit), ("shard-rows", work_options.shard_rows)):
        if number is not None and number < 1:
            raise InputError(f"Expected --{name} of at least 1; found {number}. Use a larger number.", where=name)
    if max_rejects < 0:
        raise InputError(
            f"Expected --max-rejects of at least 0; found {max_rejects:g}. Use a share (0.01) or a number.",
            where="max_rejects",
        )
    share = work_options.parse_share()
    refuse_passwords(
        source=source,
        out=out,
        scratch=work_options.scratch,
        future=dataset_options.future,
        static=dataset_options.static,
    )
    if schedule_options.cron is not None:
        schedule_command(f"batch-{_derive_job_name(model)}", "batch", arguments, schedule_options, root_options)
        return
    resolved = resolve_model(model, root_options)
    season_options.validate([resolved.folder])
    identity, default_horizon = _identify(resolved, dataset_options.freq, season_options.season)
    job = BatchJob(
        bundle=resolved.folder,
        model=identity,
        source=source,
        output=out,
        as_of=as_of or datetime.now(UTC).date().isoformat(),
        horizon=horizon or default_horizon,
        level=level,
        quantiles=quantiles,
        reading=dataset_options.to_reading(),
        future=dataset_options.future,
        static=dataset_options.static,
        workers=work_options.workers or count_cores(),
        share=share,
        scratch=work_options.scratch,
        limit=limit,
        shard_rows=work_options.shard_rows or DEFAULT_SHARD_ROWS,
        layout=dataset_options.layout,
    )
    with open_runner(work_options.on, workers=work_options.workers) as run_steps:
        report = run_batch(job, run_steps=run_steps, progress=create_display())
    _print_report(report, identity)
    validate_rejects(report, max_rejects=max_rejects)


def _identify(resolved: ResolvedModel, freq: str | None, season: int | None) -> tuple[BatchModel, int]:
    """Returns what identifies a model, and its horizon; raises InputError for the pretrained network without a frequency."""
    from forecaster.batch.shard import identify_model

    identity = identify_model(resolved.folder, version=resolved.version, freq=freq, season=season)
    return identity.model, identity.horizon


def refuse_passwords(**locations: str | None) -> None:
    """Raises InputError for a URL with a password, because other users of the machine see command lines."""
    from forecaster.storage.addresses import redact_addresses
    from pipelines.redaction import has_password

    for name, location in locations.items():
        if location is not None and has_password(location):
            raise InputError(
                f"Expected a URL without a password; found one in {redact_addresses(location)}. Put it into the environment, "
                "such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://.",
                where=name,
            )


def _derive_job_name(model: str) -> str:
    from pipelines.sources import derive_model_name

    return derive_model_name(Path(model.partition("@")[0]).name)


def _print_report(report: BatchReport, model: BatchModel) -> None:
    rate = report.series / report.seconds if report.computed else 0.0
    print(f"as of     {report.as_of}")
    print(f"model     {model.version} ({model.digest[:12]})")
    print(f"series    {report.series}, of which {report.rejected} have no forecast")
    print(f"rows      {report.rows}, {report.warnings} warnings")
    for message in report.repairs:
        warn(message)
    print(f"shards    {report.finished} of {report.shards} finished, {report.computed} by this run")
    if report.computed:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in report.stage_seconds.items())
        print(
            f"time      {report.seconds:.1f} s, {rate:.0f} series/s; in all workers {stages}; "
            f"at most {report.peak_mib:.0f} MiB each"
        )
    print(f"archive   {name_options(report.location)}")
