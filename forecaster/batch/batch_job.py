"""What a batch is to do: its model, inputs, output and options, and which of them cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from forecaster.batch.manifest import BatchModel, ReadingOptions
from forecaster.batch.plan import Layout
from forecaster.batch.stores import Store
from forecaster.errors import InputError
from forecaster.storage.addresses import redact_addresses

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
        future: Where the covariates after the histories are, if the input lacks them: Parquet or CSV, a file or a folder.
        static: Where the static features are, one row for each series, if the input lacks them.
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
    future: str | None = None
    static: str | None = None
    workers: int = 1
    share: JobShare = field(default_factory=JobShare)
    scratch: str | None = None
    limit: int | None = None
    shard_rows: int = DEFAULT_SHARD_ROWS
    layout: Layout = "auto"
    seed: int = 0


def validate_job(job: BatchJob) -> None:
    """Raises InputError for options that cannot be used."""
    for name, number in (("horizon", job.horizon), ("workers", job.workers), ("shard_rows", job.shard_rows)):
        if number < 1:
            raise InputError(f"Expected `{name}` of at least 1; found {number}. Use a larger number.", where=name)
    if job.layout not in get_args(Layout):
        raise InputError(
            f"Expected `layout` among {', '.join(get_args(Layout))}; found {job.layout!r}. Use one of these.",
            where="layout",
        )
    for location in (job.source, job.future, job.static):
        if location is not None and Store(location).contains(Store(job.output)):
            raise InputError(
                f"Expected an output outside of the input {redact_addresses(location)}; found {redact_addresses(job.output)}, "
                "whose files would be read as input. Use another folder.",
                where="out",
            )
    if not 0 <= job.share.index < job.share.count:
        raise InputError(
            f"Expected a shard from 0/{job.share.count} to {job.share.count - 1}/{job.share.count}; found "
            f"{job.share.index}/{job.share.count}. Count from 0.",
            where="shard",
        )


def make_absolute(job: BatchJob) -> BatchJob:
    """Returns a job whose paths do not depend on the folder in which a worker was started."""

    def to_absolute(location: str | None) -> str | None:
        return None if location is None else _to_absolute(location)

    return replace(
        job,
        bundle=job.bundle.absolute(),
        source=_to_absolute(job.source),
        future=to_absolute(job.future),
        static=to_absolute(job.static),
        output=_to_absolute(job.output),
        scratch=to_absolute(job.scratch),
    )


def _to_absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).absolute())
