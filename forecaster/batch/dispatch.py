"""Runs the steps of a batch, on other machines too, and checks that the files that they have written have arrived."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from forecaster.batch.manifest import ShardRecord
from forecaster.batch.shard import ShardInputs, compute_shard, load_model
from forecaster.batch.shuffle import Shuffle, find_missing_steps, run_step
from forecaster.batch.stores import Store
from forecaster.errors import InputError
from forecaster.progress import Progress
from forecaster.progress.steps import RunSteps


def run_shuffle(shuffle: Shuffle, steps: Sequence[int], *, run_steps: RunSteps, progress: Progress) -> None:
    """Runs some steps of a shuffle, in this order.

    Args:
        shuffle: The shuffle.
        steps: Those of its steps that are missing.
        run_steps: What runs them.
        progress: Receives one phase.
    Raises:
        InputError: A worker has written a file that this process does not see.
    """
    with progress.phase("shuffle", len(steps)):
        rows = 0
        for number, written in enumerate(run_steps(partial(run_step, shuffle), steps), start=1):
            rows += written
            progress.update(number, f"{rows} rows")
    for step in find_missing_steps(shuffle):
        _require_file(Store(shuffle.scratch), shuffle.file_name(step))


def compute_shards(
    inputs: ShardInputs, shards: Sequence[int], *, run_steps: RunSteps, progress: Progress
) -> list[ShardRecord]:
    """Computes some shards; returns their records as they finished.

    Args:
        inputs: The batch.
        shards: The numbers of the shards that are missing.
        run_steps: What runs them.
        progress: Receives one phase.
    Raises:
        InputError: A worker has written a file that this process does not see.
    """
    records: list[ShardRecord] = []
    if not shards:
        return records
    store = Store(inputs.output)
    with progress.phase("forecast", len(shards)):
        start, series, rejected = time.perf_counter(), 0, 0
        for record in run_steps(partial(forecast_shard, inputs), shards):
            _require_file(store, inputs.manifest.record_name(record.shard))
            records.append(record)
            series, rejected = series + record.series, rejected + record.rejected
            rate = series / max(1e-9, time.perf_counter() - start)
            progress.update(len(records), f"{series} series, {rejected} rejected, {rate:.0f} series/s")
    return records


def forecast_shard(inputs: ShardInputs, shard: int) -> ShardRecord:
    """Computes one shard, in any process, which loads the model once."""
    return compute_shard(
        load_model(inputs.bundle, inputs.manifest.model, horizon=inputs.manifest.horizon), inputs, shard
    )


def _require_file(store: Store, name: str) -> None:
    """Raises InputError if a worker has written a file that this process does not see, before a batch is listed without it."""
    if not store.exists(name):
        raise InputError(
            f"Expected {name} in {store.shown_location}, which a worker has written; this process does not see it. Use a store, "
            "or a file system that all machines share, as --out and --scratch.",
            where="out",
        )
