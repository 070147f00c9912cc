"""Runs a batch: plans it once, shuffles if needed, computes the missing shards in processes, and lists it in the archive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

from forecaster.batch.dispatch import compute_shards, run_shuffle
from forecaster.batch.manifest import (
    BatchManifest,
    BatchModel,
    NightRecord,
    ReadingOptions,
    ShardRecord,
    add_to_catalogue,
    find_shard_records,
    parse_as_of,
    read_manifest,
    validate_same_batch,
    write_manifest,
)
from forecaster.batch.plan import Layout, plan_shards
from forecaster.batch.shard import MAX_REPAIRS, STAGES, ShardInputs, load_model
from forecaster.batch.shuffle import Shuffle, find_missing_steps
from forecaster.batch.source import InputColumns, Source, open_source
from forecaster.batch.stores import Store
from forecaster.batch.workers import run_in_processes
from forecaster.data.forecast_table import plan_quantile_columns
from forecaster.errors import InputError, TooManyRejects
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.progress.steps import RunSteps
from forecaster.storage.addresses import redact_addresses
from forecaster.storage.failpoints import fail_point

DEFAULT_SHARD_ROWS = 2_000_000


@dataclass(frozen=True)
class JobShare:
    """The shards that one of several jobs computes: those whose number has the remainder `index` when divided by `count`."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class BatchJob:
    """A batch: a model, an input, an output, and what is forecast.

    Attributes:
        bundle: The folder of the model.
        model: What identifies it.
        source: A Parquet file, or a folder of such files; a path or URL.
        output: The folder of the archive, a path or URL.
        as_of: The date or the moment of the forecasts.
        horizon: Steps ahead.
        level, quantiles: Intervals in percent, and quantiles between 0 and 1.
        reading: How the input is read.
        workers: Processes that compute at the same time; 1 computes in this process.
        share: The shards of this job, if several compute one batch.
        scratch: The folder of temporary files; by default `output`.
        limit: The number of series, for a trial; None for all.
        shard_rows: The rows of the input that become one file.
        layout: How whole series are found.
        seed: Of the hash of a shuffle.
    """

    bundle: Path
    model: BatchModel
    source: str
    output: str
    as_of: str
    horizon: int
    level: tuple[float, ...] = ()
    quantiles: tuple[float, ...] = ()
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    workers: int = 1
    share: JobShare = field(default_factory=JobShare)
    scratch: str | None = None
    limit: int | None = None
    shard_rows: int = DEFAULT_SHARD_ROWS
    layout: Layout = "auto"
    seed: int = 0


class BatchReport(NamedTuple):
    """What a job has done.

    Attributes:
        as_of: The date or the moment of the forecasts.
        shards: The shards of the whole batch.
        finished: Those that are finished, by this and by other jobs.
        computed: Those that this run computed; the others were there.
        series, rejected, rows, warnings: Series, those without a forecast, rows of forecasts, and warnings about forecasts, of
            the shards of this job.
        repairs: The first messages about repaired rows.
        seconds: The seconds of this run.
        stage_seconds: The seconds of reading, forecasting and writing in all processes, of the computed shards.
        peak_mib: The largest peak memory of a process.
        location: The folder of the archive.
    """

    as_of: str
    shards: int
    finished: int
    computed: int
    series: int
    rejected: int
    rows: int
    warnings: int
    repairs: tuple[str, ...]
    seconds: float
    stage_seconds: dict[str, float]
    peak_mib: float
    location: str

    @property
    def is_complete(self) -> bool:
        """Whether every shard of the batch is finished."""
        return self.finished == self.shards


def run_batch(job: BatchJob, *, run_steps: RunSteps | None = None, progress: Progress = NO_PROGRESS) -> BatchReport:
    """Forecasts a data set into an archive; the same call continues a batch that was interrupted.

    Args:
        job: The batch.
        run_steps: What runs the shards and the steps of a shuffle, perhaps on other machines, which read and write the same
            locations; by default `workers` processes of this machine.
        progress: Receives the phases: plan, shuffle, forecast.
    Raises:
        ManifestMismatch: The batch was started with another model, input or option.
        MissingColumn, NoData: The input lacks a column or is empty.
        InputError: Workers cannot read or write the locations of this process.
        BatchInterrupted: A worker was killed.
    """
    start = time.perf_counter()
    _validate_job(job)
    if run_steps is not None:
        job = _make_absolute(job)
    store = Store(job.output)
    with progress.phase("plan"):
        job = _complete_reading(job)
        source = open_source(job.source, InputColumns(job.reading.names, job.reading.others))
        manifest = _open_manifest(job, store, source)
        progress.update(0, f"{len(manifest.shards)} shards, {manifest.source.rows} rows")
    shuffle = _describe_shuffle(job, manifest, source)
    if run_steps is not None or job.workers > 1:
        _require_shared_stores([store, *([Store(shuffle.scratch)] if shuffle else [])], source)
    inputs = ShardInputs(job.bundle, manifest, source, shuffle, job.output)
    with store.hold_lock(manifest.lock_name(job.share.index)):
        run_steps = run_steps or partial(run_in_processes, workers=job.workers)
        return _run_job(job, inputs, store, run_steps, progress, start=start)


def _run_job(
    job: BatchJob, inputs: ShardInputs, store: Store, run_steps: RunSteps, progress: Progress, *, start: float
) -> BatchReport:
    """Computes the missing shards of a job, and completes the batch if no other shard is missing."""
    manifest, shuffle = inputs.manifest, inputs.shuffle
    mine = range(job.share.index, len(manifest.shards), job.share.count)
    records = find_shard_records(store, manifest, mine)
    missing = [shard for shard in mine if shard not in records]
    if shuffle is not None and missing:
        steps = _order_steps(find_missing_steps(shuffle), job.share)
        run_shuffle(shuffle, steps, run_steps=run_steps, progress=progress)
    computed = compute_shards(inputs, missing, run_steps=run_steps, progress=progress)
    records |= {record.shard: record for record in computed}
    others = [shard for shard in range(len(manifest.shards)) if shard not in records]
    records |= find_shard_records(store, manifest, others, verify=False)  # those of other jobs
    if len(records) == len(manifest.shards):
        _complete_batch(inputs, store, list(records.values()))
    own = [records[shard] for shard in mine]
    return BatchReport(
        as_of=manifest.as_of,
        shards=len(manifest.shards),
        finished=len(records),
        computed=len(computed),
        series=sum(record.series for record in own),
        rejected=sum(record.rejected for record in own),
        rows=sum(record.rows for record in own),
        warnings=sum(record.warnings for record in own),
        repairs=tuple(message for record in own for message in record.repairs)[:MAX_REPAIRS],
        seconds=time.perf_counter() - start,
        stage_seconds={stage: sum(record.seconds.get(stage, 0.0) for record in computed) for stage in STAGES},
        peak_mib=max((record.peak_mib for record in computed), default=0.0),
        location=store.shown_location,
    )


def _complete_batch(inputs: ShardInputs, store: Store, records: Sequence[ShardRecord]) -> None:
    """Lists a batch in the catalogue, and removes temporary files, also those of killed processes."""
    add_to_catalogue(store, _summarize_night(inputs.manifest, records))
    fail_point("batch.listed")
    for folder in inputs.manifest.folders:
        store.remove_drafts(folder)
    if inputs.shuffle is not None:
        Store(inputs.shuffle.scratch).remove_folder(inputs.shuffle.folder)


def validate_rejects(report: BatchReport, *, max_rejects: float) -> None:
    """Raises TooManyRejects if too many series have no forecast.

    Args:
        report: What was done.
        max_rejects: A share of the series below 1 (0.01), or a number of series from 1 on.
    """
    allowed = max_rejects * report.series if max_rejects < 1 else max_rejects
    if report.rejected > allowed:
        raise TooManyRejects(
            f"Expected at most {max_rejects:g} series without a forecast{' (a share)' if max_rejects < 1 else ''}; found "
            f"{report.rejected} of {report.series}. Their reasons are in {report.location}/_rejects; correct the input, or allow "
            "more with --max-rejects.",
            where="max_rejects",
        )


def _validate_job(job: BatchJob) -> None:
    for name, number in (("horizon", job.horizon), ("workers", job.workers), ("shard_rows", job.shard_rows)):
        if number < 1:
            raise InputError(f"Expected `{name}` of at least 1; found {number}. Use a larger number.", where=name)
    if job.layout not in get_args(Layout):
        raise InputError(
            f"Expected `layout` among {', '.join(get_args(Layout))}; found {job.layout!r}. Use one of these.",
            where="layout",
        )
    if Store(job.source).contains(Store(job.output)):
        raise InputError(
            f"Expected an output outside of the input {redact_addresses(job.source)}; found {redact_addresses(job.output)}, "
            "whose files would be read as input. Use another folder.",
            where="out",
        )
    if not 0 <= job.share.index < job.share.count:
        raise InputError(
            f"Expected a shard from 0/{job.share.count} to {job.share.count - 1}/{job.share.count}; found "
            f"{job.share.index}/{job.share.count}. Count from 0.",
            where="shard",
        )


def _complete_reading(job: BatchJob) -> BatchJob:
    """Returns a job with the other columns that its model reads; raises errors of the model, the horizon and the levels."""
    predictor = load_model(job.bundle, job.model, horizon=job.horizon)
    levels = plan_quantile_columns(job.level, job.quantiles).values()
    predictor.forecast_batch([], job.horizon, levels=sorted(set(levels)))
    spec = predictor.fitted_model.spec
    others = (*spec.covariates, *spec.static_columns, *spec.channels)
    return replace(job, reading=job.reading.model_copy(update={"others": others}))


def _open_manifest(job: BatchJob, store: Store, source: Source) -> BatchManifest:
    """Returns the manifest of a batch; the first call writes it, later ones must describe the same batch."""
    as_of = parse_as_of(job.as_of)
    summary, groups = source.summarize()
    fixed = {
        "model": job.model,
        "source": summary,
        "horizon": job.horizon,
        "level": job.level,
        "quantiles": job.quantiles,
        "reading": job.reading,
        "limit": job.limit,
        "seed": job.seed,
        "shard_rows": job.shard_rows,
        "layout": job.layout,
    }
    manifest = read_manifest(store, as_of)
    if manifest is None:
        plan = plan_shards(source, summary, groups, shard_rows=job.shard_rows, layout=job.layout, limit=job.limit)
        manifest = BatchManifest(as_of=as_of, shards=plan.shards, slabs=plan.slabs, ids=plan.ids, **fixed)
        write_manifest(store, manifest)
        fail_point("batch.planned")
    validate_same_batch(manifest, fixed, where=store.shown_location)
    return manifest


def _describe_shuffle(job: BatchJob, manifest: BatchManifest, source: Source) -> Shuffle | None:
    if not manifest.slabs:
        return None
    return Shuffle(
        source=source,
        slabs=manifest.slabs,
        buckets=len(manifest.shards),
        seed=manifest.seed,
        ids=manifest.ids,
        scratch=job.scratch or job.output,
        folder=manifest.shuffle_folder,
    )


def _make_absolute(job: BatchJob) -> BatchJob:
    """Returns a job whose paths do not depend on the folder in which a worker was started."""
    scratch = None if job.scratch is None else _to_absolute(job.scratch)
    return replace(
        job,
        bundle=job.bundle.absolute(),
        source=_to_absolute(job.source),
        output=_to_absolute(job.output),
        scratch=scratch,
    )


def _to_absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).absolute())


def _require_shared_stores(stores: Sequence[Store], source: Source) -> None:
    if not (source.is_shared and all(store.is_shared for store in stores)):
        raise InputError(
            "Expected locations that other processes can read; found memory://. Use one worker (--workers 1), or another store.",
            where="workers",
        )


def _order_steps(missing: Sequence[int], share: JobShare) -> list[int]:
    """Returns first the steps of this job, then those that no other job has finished meanwhile."""
    own = [step for step in missing if step % share.count == share.index]
    return [*own, *sorted({*missing} - {*own})]


def _summarize_night(manifest: BatchManifest, records: Sequence[ShardRecord]) -> NightRecord:
    return NightRecord(
        as_of=manifest.as_of,
        model=manifest.model,
        horizon=manifest.horizon,
        level=manifest.level,
        quantiles=manifest.quantiles,
        id_column=manifest.reading.id_column,
        ds_column=manifest.reading.ds_column,
        files=sum(record.forecasts is not None for record in records),
        series=sum(record.series for record in records),
        rejected=sum(record.rejected for record in records),
        rows=sum(record.rows for record in records),
    )
