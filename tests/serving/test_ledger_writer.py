"""The ledger writer: it never blocks a request, deletes old records, and shares its ledger with other workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.ledger.store import Ledger
from forecaster.series import Series
from serving import ledger_writer as ledgers
from serving.deployment.slot import Slot
from serving.ledger_writer import LedgerWriter
from serving.settings import Settings
from tests.serving.conftest import load_stub, publish_stub
from tests.serving.routes.test_accuracy import query_rows


@pytest.fixture
def ledger_writer(slot_folder: Path) -> Iterator[LedgerWriter]:
    writer = LedgerWriter(
        Settings(slot=slot_folder, ledger="on", ledger_waiting=5, ledger_days=1),
        retry_delay_s=0.01,
        adapt_interval_s=0.02,
    )
    yield writer
    writer.stop()


def make_records(writer: LedgerWriter, slot_folder: Path, *names: str) -> None:
    """Records the forecasts of one request with a series of each name."""
    if not (slot_folder / "current").exists():
        publish_stub(slot_folder)
    slot = Slot(slot_folder, load=load_stub)
    slot.reload_if_changed()
    model = writer.attach(slot.current)
    assert model is not None
    histories = [Series(name, pd.Timestamp("2026-01-01"), "h", np.array([1.0, 2.0, 3.0])) for name in names]
    model.record_forecasts(model, histories, model.predictor.forecast_batch(histories, 2))


def test_records_older_than_the_retention_are_deleted(slot_folder: Path) -> None:
    now = [1_000_000.0]
    settings = Settings(slot=slot_folder, ledger="on", ledger_days=1)
    for time_s in (1_000_000.0, 1_000_000.0 + 3600, 1_000_000.0 + 86400 + 60):
        now[0] = time_s
        writer = LedgerWriter(settings, clock=lambda: now[0])
        writer.start()
        make_records(writer, slot_folder, f"made at {time_s}")
        writer.stop()
    assert query_rows(slot_folder, "SELECT made_at FROM ledger_forecasts") == [(1_003_600.0,), (1_086_460.0,)]


def test_a_full_queue_drops_and_counts_without_blocking(ledger_writer: LedgerWriter, slot_folder: Path) -> None:
    counts: list[tuple[str, int]] = []
    ledger_writer._count = lambda outcome, count: counts.append((outcome, count))
    make_records(ledger_writer, slot_folder, "a", "b", "c")  # they stay in the queue: the thread is not started
    started_at = time.monotonic()
    for _ in range(3):
        make_records(ledger_writer, slot_folder, "d", "e", "f")
    assert time.monotonic() - started_at < 2
    assert counts == [("dropped", 3)] * 3
    ledger_writer.start()
    _wait_until(lambda: ("stored", 3) in counts)
    make_records(ledger_writer, slot_folder, "d")
    _wait_until(lambda: ("stored", 1) in counts)


def test_long_histories_do_not_exhaust_the_memory(
    ledger_writer: LedgerWriter, slot_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "MAX_QUEUED_NUMBERS", 11)
    counts: list[tuple[str, int]] = []
    ledger_writer._count = lambda outcome, count: counts.append((outcome, count))
    make_records(ledger_writer, slot_folder, "a", "b")  # ten numbers
    make_records(ledger_writer, slot_folder, "c")
    assert counts == [("dropped", 1)]


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_several_workers_write_one_ledger(slot_folder: Path) -> None:
    publish_stub(slot_folder)
    settings = Settings(slot=slot_folder, ledger="on")
    writers = [LedgerWriter(settings, retry_delay_s=0.05) for _ in range(4)]
    for writer in writers:
        writer.start()

    def record_from_worker(writer: LedgerWriter, index: int) -> None:
        for number in range(20):
            make_records(writer, slot_folder, "shared", f"{index} {number}")

    threads = [
        threading.Thread(target=record_from_worker, args=(writer, index)) for index, writer in enumerate(writers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _wait_until(lambda: not any(writer._queued_forecasts for writer in writers))
    for writer in writers:
        writer.stop()
    assert query_rows(slot_folder, "SELECT count(*) FROM ledger_forecasts") == [(81,)]
    assert query_rows(slot_folder, "SELECT count(*) FROM ledger_facts") == [(2,)]
    ledger = Ledger(f"sqlite:///{slot_folder}/ledger.db")
    assert len(ledger.salt) == 32
    ledger.close()
