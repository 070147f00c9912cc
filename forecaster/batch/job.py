"""Runs a batch: plans it once, shuffles if needed, computes the missing shards in processes, and lists it in the archive."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from forecaster.batch.batch_job import DEFAULT_SHARD_ROWS as DEFAULT_SHARD_ROWS
from forecaster.batch.batch_job import BatchJob as BatchJob
from forecaster.batch.batch_job import JobShare as JobShare
from forecaster.batch.batch_job import make_absolute, validate_job
from forecaster.batch.covariates import CovariateSources, open_covariates, summarize_covariates
from forecaster.batch.dispatch import compute_shards, run_shuffle
from forecaster.batch.manifest import (
    BatchManifest,
    NightRecord,
    ShardRecord,
    add_to_catalogue,
    find_shard_records,
    parse_as_of,
    read_manifest,
    validate_same_batch,
    write_manifest,
)
from forecaster.batch.plan import plan_future, plan_shards
from forecaster.batch.shard import MAX_REPAIRS, STAGES, ShardInputs, load_model
from forecaster.batch.shuffle import Shuffle, find_missing_steps
from forecaster.batch.source import InputColumns, Source, open_source
from forecaster.batch.stores import Store
from forecaster.batch.workers import run_in_processes
from forecaster.data.forecast_table import plan_quantile_columns
from forecaster.errors import InputError, TooManyRejects
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.progress.steps import RunSteps
from forecaster.storage.failpoints import fail_point


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
    validate_job(job)
    if run_steps is not None:
        job = make_absolute(job)
    store = Store(job.output)
    with progress.phase("plan"):
        job, covariates = _open_model(job)
        source = open_source(job.source, _list_columns(job))
        manifest = _open_manifest(job, store, source, covariates)
        progress.update(0, f"{len(manifest.shards)} shards, {manifest.source.rows} rows")
    inputs = _open_inputs(job, manifest, source, covariates)
    if run_steps is not None or job.workers > 1:
        scratches = [Store(shuffle.scratch) for shuffle in inputs.shuffles]
        _require_shared_stores([store, *scratches], [source, *covariates.opened])
    with store.hold_lock(manifest.lock_name(job.share.index)):
        run_steps = run_steps or partial(run_in_processes, workers=job.workers)
        return _run_job(job, inputs, store, run_steps, progress, start=start)


def _run_job(
    job: BatchJob, inputs: ShardInputs, store: Store, run_steps: RunSteps, progress: Progress, *, start: float
) -> BatchReport:
    """Computes the missing shards of a job, and completes the batch if no other shard is missing."""
    manifest = inputs.manifest
    mine = range(job.share.index, len(manifest.shards), job.share.count)
    records = find_shard_records(store, manifest, mine)
    missing = [shard for shard in mine if shard not in records]
    for shuffle in inputs.shuffles if missing else ():
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
    for shuffle in inputs.shuffles[:1]:
        Store(shuffle.scratch).remove_folder(inputs.manifest.shuffle_folder)


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


def _open_model(job: BatchJob) -> tuple[BatchJob, CovariateSources]:
    """Returns a job with the other columns of the input that its model reads, and the data sets that have the remaining ones.

    Raises errors of the model, the horizon and the levels, and of these data sets.
    """
    predictor = load_model(job.bundle, job.model, horizon=job.horizon)
    levels = plan_quantile_columns(job.level, job.quantiles).values()
    predictor.forecast_batch([], job.horizon, levels=sorted(set(levels)))
    model = predictor.fitted_model
    covariates = open_covariates(model, job.reading.names, future=job.future, static=job.static)
    features = model.spec.static_columns if job.static is None else ()
    others = (*model.spec.covariates, *features, *model.spec.channels)
    return replace(job, reading=job.reading.model_copy(update={"others": others})), covariates


def _list_columns(job: BatchJob) -> InputColumns:
    names = job.reading.names
    return InputColumns(names.unique_id, (names.ds, names.y, *job.reading.others))


def _open_manifest(job: BatchJob, store: Store, source: Source, covariates: CovariateSources) -> BatchManifest:
    """Returns the manifest of a batch; the first call writes it, later ones must describe the same batch."""
    as_of = parse_as_of(job.as_of)
    summary, groups = source.summarize()
    others = summarize_covariates(covariates)
    fixed = {
        "model": job.model,
        "source": summary,
        "future": others.future,
        "static": others.static,
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
        if others.future is not None:
            plan = plan_future(plan, groups, others.future_groups, shard_rows=job.shard_rows)
        manifest = BatchManifest(as_of=as_of, **plan._asdict(), **fixed)
        write_manifest(store, manifest)
        fail_point("batch.planned")
    validate_same_batch(manifest, fixed, where=store.shown_location)
    return manifest


def _open_inputs(job: BatchJob, manifest: BatchManifest, source: Source, covariates: CovariateSources) -> ShardInputs:
    """Returns what every shard is computed from, with the shuffles of the histories and of the future."""
    buckets, scratch, folder = len(manifest.shards), job.scratch or job.output, manifest.shuffle_folder
    shuffle = Shuffle(source, manifest.slabs, buckets, manifest.seed, manifest.ids, scratch, folder)
    future_shuffle = None
    if covariates.future is not None and manifest.future_slabs:
        thresholds = None if manifest.slabs else tuple(shard.until for shard in manifest.shards)
        future_shuffle = shuffle._replace(
            source=covariates.future, slabs=manifest.future_slabs, folder=f"{folder}/future", thresholds=thresholds
        )
    return ShardInputs(
        job.bundle, manifest, source, covariates, shuffle if manifest.slabs else None, future_shuffle, job.output
    )


def _require_shared_stores(stores: Sequence[Store], sources: Sequence[Source]) -> None:
    if not (all(store.is_shared for store in stores) and all(source.is_shared for source in sources)):
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
