"""The queue that promotions on several machines stand in: one at a time, whoever dies, sleeps or comes late."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from forecaster.errors import NoSuchModel, RegistryError
from forecaster.registry.lock import NOTE_PREFIX, QueueTiming, lock_by_queue

FAST_TIMING = QueueTiming(lifetime=0.6, poll_interval=0.005, timeout=20.0)


class InMemoryBoard:
    """A board in memory; `seconds` is how long each request takes, half before it is done and half after."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.notes: dict[str, str] = {"owner": "no note of a queue"}
        self.seconds = seconds
        self.down = False

    def read_notes(self) -> Mapping[str, str]:
        self._simulate_latency()
        found = dict(self.notes)
        self._simulate_latency()
        return found

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
    board, inside, seen = InMemoryBoard(seconds=0.002), [0], []

    def enter(_: int) -> None:
        for _ in range(4):
            with lock_by_queue(
                board, where="model 'm'", timing=QueueTiming(lifetime=10.0, poll_interval=0.002, timeout=60.0)
            ) as confirm:
                inside[0] += 1
                seen.append(inside[0])
                time.sleep(0.002)
                confirm()
                inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(8)))
    assert seen == [1] * 32
    assert board.notes == {"owner": "no note of a queue"}, "notes are taken away, those of others stay"


def test_an_expired_entry_of_a_dead_process_is_removed(caplog: pytest.LogCaptureFixture) -> None:
    board = InMemoryBoard()
    board.notes[f"{NOTE_PREFIX}dead"] = "1 7 other-machine:4711"
    started = time.monotonic()
    with lock_by_queue(board, where="model 'm'", timing=FAST_TIMING):
        assert time.monotonic() - started > FAST_TIMING.lifetime
        assert f"{NOTE_PREFIX}dead" not in board.notes
    assert "held by other-machine:4711, which died" in caplog.text


def test_a_process_that_dies_while_choosing_a_ticket_does_not_block_others() -> None:
    board = InMemoryBoard()
    board.notes[f"{NOTE_PREFIX}dead"] = "0 1 other-machine:4711"
    with lock_by_queue(board, where="model 'm'", timing=FAST_TIMING) as confirm:
        confirm()


def test_a_critical_section_longer_than_the_lifetime_is_not_interrupted() -> None:
    board, order = InMemoryBoard(), []

    def second() -> None:
        with lock_by_queue(board, where="model 'm'", timing=FAST_TIMING):
            order.append("second")

    with lock_by_queue(board, where="model 'm'", timing=FAST_TIMING) as confirm:
        other = threading.Thread(target=second)
        other.start()
        time.sleep(3 * FAST_TIMING.lifetime)
        confirm()
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_a_holder_that_was_presumed_dead_detects_it_before_writing() -> None:
    board = InMemoryBoard()
    with lock_by_queue(board, where="model 'm'", timing=FAST_TIMING) as confirm:
        confirm()
        del board.notes[next(key for key in board.notes if key.startswith(NOTE_PREFIX))]  # another waited long enough
        board.notes[f"{NOTE_PREFIX}other"] = "2 1 other-machine:4711"
        with pytest.raises(RegistryError, match=r"it was lost, .* Nothing was changed; try again"):
            confirm()


def test_a_holder_that_cannot_renew_loses_the_lock_and_does_not_rejoin(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board = InMemoryBoard()
    with lock_by_queue(board, where="model 'm'", timing=FAST_TIMING) as confirm:
        board.down = True
        time.sleep(FAST_TIMING.lifetime)
        board.notes = {}  # others took it away
        board.down = False
        time.sleep(FAST_TIMING.lifetime / 2)
        assert board.notes == {}, "it is not put up again"
        with pytest.raises(RegistryError, match="was lost"):
            confirm()
    assert "could not be renewed" in caplog.text


def test_a_long_held_lock_is_reported_with_its_holder() -> None:
    board = InMemoryBoard()
    with lock_by_queue(board, where="model 'm'", timing=FAST_TIMING) as confirm:
        with (
            pytest.raises(RegistryError, match=r"free within 0 s; .*:\d+ still holds it"),
            lock_by_queue(board, where="model 'm'", timing=FAST_TIMING._replace(timeout=0.1)),
        ):
            pass
        confirm()


def test_a_failed_release_does_not_fail_the_promotion(caplog: pytest.LogCaptureFixture) -> None:
    board = InMemoryBoard()
    with lock_by_queue(board, where="model 'm'", timing=FAST_TIMING):
        board.down = True
    assert "could not be released, and expires by itself" in caplog.text


def test_a_missing_registry_cannot_be_locked(caplog: pytest.LogCaptureFixture) -> None:
    class Nothing(InMemoryBoard):
        def write_note(self, key: str, value: str) -> None:
            raise NoSuchModel("Model 'm' is not in the store.")

    with pytest.raises(NoSuchModel), lock_by_queue(Nothing(), where="model 'm'", timing=FAST_TIMING):
        pass
    assert caplog.text == ""
