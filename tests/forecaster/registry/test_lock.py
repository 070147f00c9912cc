"""The queue that serialises promotions on several machines: one holder at a time, also when processes die, stall or are late."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from forecaster.errors import NoSuchModel, RegistryError
from forecaster.registry.lock import NOTE_PREFIX, QueueTiming, lock_by_queue

FAST_TIMING = QueueTiming(lifetime=0.6, poll_interval=0.005, timeout=20.0)


class InMemoryNoteStore:
    """Notes in memory; `seconds` is the latency of each request, half before its effect and half after."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.notes: dict[str, str] = {"owner": "no note of a queue"}
        self.seconds = seconds
        self.down = False

    def read_notes(self) -> Mapping[str, str]:
        self._simulate_latency()
        notes = dict(self.notes)
        self._simulate_latency()
        return notes

    def write_note(self, key: str, value: str) -> None:
        self._simulate_latency()
        self.notes[key] = value
        self._simulate_latency()

    def delete_note(self, key: str) -> None:
        self._simulate_latency()
        self.notes.pop(key, None)

    def _simulate_latency(self) -> None:
        if self.down:
            raise RegistryError("The store failed: no route to host.")
        time.sleep(self.seconds / 2)


def test_only_one_of_many_concurrent_holders_is_in_the_critical_section() -> None:
    store, num_inside, observed = InMemoryNoteStore(seconds=0.002), [0], []

    def enter(_: int) -> None:
        for _ in range(4):
            with lock_by_queue(
                store, where="model 'm'", timing=QueueTiming(lifetime=10.0, poll_interval=0.002, timeout=60.0)
            ) as check_held:
                num_inside[0] += 1
                observed.append(num_inside[0])
                time.sleep(0.002)
                check_held()
                num_inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(8)))
    assert observed == [1] * 32
    assert store.notes == {"owner": "no note of a queue"}, "own notes are deleted, others remain"


def test_an_expired_entry_of_a_dead_process_is_removed(caplog: pytest.LogCaptureFixture) -> None:
    store = InMemoryNoteStore()
    store.notes[f"{NOTE_PREFIX}dead"] = "1 7 other-machine:4711"
    started = time.monotonic()
    with lock_by_queue(store, where="model 'm'", timing=FAST_TIMING):
        assert time.monotonic() - started > FAST_TIMING.lifetime
        assert f"{NOTE_PREFIX}dead" not in store.notes
    assert "held by other-machine:4711, which died" in caplog.text


def test_a_process_that_dies_while_choosing_a_ticket_does_not_block_others() -> None:
    store = InMemoryNoteStore()
    store.notes[f"{NOTE_PREFIX}dead"] = "0 1 other-machine:4711"
    with lock_by_queue(store, where="model 'm'", timing=FAST_TIMING) as check_held:
        check_held()


def test_a_critical_section_longer_than_the_lifetime_is_not_interrupted() -> None:
    store, order = InMemoryNoteStore(), []

    def second() -> None:
        with lock_by_queue(store, where="model 'm'", timing=FAST_TIMING):
            order.append("second")

    with lock_by_queue(store, where="model 'm'", timing=FAST_TIMING) as check_held:
        other = threading.Thread(target=second)
        other.start()
        time.sleep(3 * FAST_TIMING.lifetime)
        check_held()
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_a_holder_that_was_presumed_dead_detects_it_before_writing() -> None:
    store = InMemoryNoteStore()
    with lock_by_queue(store, where="model 'm'", timing=FAST_TIMING) as check_held:
        check_held()
        # Another process took it for dead.
        del store.notes[next(key for key in store.notes if key.startswith(NOTE_PREFIX))]
        store.notes[f"{NOTE_PREFIX}other"] = "2 1 other-machine:4711"
        with pytest.raises(RegistryError, match=r"it was lost, .* Nothing was changed; try again"):
            check_held()


def test_a_holder_that_cannot_renew_loses_the_lock_and_does_not_rejoin(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = InMemoryNoteStore()
    with lock_by_queue(store, where="model 'm'", timing=FAST_TIMING) as check_held:
        store.down = True
        time.sleep(FAST_TIMING.lifetime)
        store.notes = {}  # others deleted the note
        store.down = False
        time.sleep(FAST_TIMING.lifetime / 2)
        assert store.notes == {}, "it is not written again"
        with pytest.raises(RegistryError, match="was lost"):
            check_held()
    assert "could not be renewed" in caplog.text


def test_a_long_held_lock_is_reported_with_its_holder() -> None:
    store = InMemoryNoteStore()
    with lock_by_queue(store, where="model 'm'", timing=FAST_TIMING) as check_held:
        with (
            pytest.raises(RegistryError, match=r"free within 0 s; .*:\d+ still holds it"),
            lock_by_queue(store, where="model 'm'", timing=FAST_TIMING._replace(timeout=0.1)),
        ):
            pass
        check_held()


def test_a_failed_release_does_not_fail_the_promotion(caplog: pytest.LogCaptureFixture) -> None:
    store = InMemoryNoteStore()
    with lock_by_queue(store, where="model 'm'", timing=FAST_TIMING):
        store.down = True
    assert "could not be released, and expires by itself" in caplog.text


def test_a_missing_registry_cannot_be_locked(caplog: pytest.LogCaptureFixture) -> None:
    class MissingModelStore(InMemoryNoteStore):
        def write_note(self, key: str, value: str) -> None:
            raise NoSuchModel("Model 'm' is not in the store.")

    with pytest.raises(NoSuchModel), lock_by_queue(MissingModelStore(), where="model 'm'", timing=FAST_TIMING):
        pass
    assert caplog.text == ""
