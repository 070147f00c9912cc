"""The queue that promotions on several machines stand in: one at a time, whoever dies, sleeps or comes late."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from forecaster.errors import NoSuchModel, RegistryError
from forecaster.registry.lock import NOTE, Pace, queue

FAST = Pace(life=0.6, poll=0.005, patience=20.0)


class Notes:
    """A board in memory; `seconds` is how long each request takes, half before it is done and half after."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.notes: dict[str, str] = {"owner": "no note of a queue"}
        self.seconds = seconds
        self.down = False

    def read(self) -> Mapping[str, str]:
        self._travel()
        found = dict(self.notes)
        self._travel()
        return found

    def write(self, key: str, value: str) -> None:
        self._travel()
        self.notes[key] = value
        self._travel()

    def erase(self, key: str) -> None:
        self._travel()
        self.notes.pop(key, None)

    def _travel(self) -> None:
        if self.down:
            raise RegistryError("The store failed: no route to host.")
        time.sleep(self.seconds / 2)


def test_of_many_that_come_at_once_one_is_inside() -> None:
    board, inside, seen = Notes(seconds=0.002), [0], []

    def enter(_: int) -> None:
        for _ in range(4):
            with queue(board, where="model 'm'", pace=Pace(life=10.0, poll=0.002, patience=60.0)) as confirm:
                inside[0] += 1
                seen.append(inside[0])
                time.sleep(0.002)
                confirm()
                inside[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(8)))
    assert seen == [1] * 32
    assert board.notes == {"owner": "no note of a queue"}, "notes are taken away, those of others stay"


def test_a_note_of_somebody_who_died_is_taken_away_once_it_stood_still(caplog: pytest.LogCaptureFixture) -> None:
    board = Notes()
    board.notes[f"{NOTE}dead"] = "1 7 other-machine:4711"
    started = time.monotonic()
    with queue(board, where="model 'm'", pace=FAST):
        assert time.monotonic() - started > FAST.life
        assert f"{NOTE}dead" not in board.notes
    assert "held by other-machine:4711, which died" in caplog.text


def test_who_died_while_choosing_a_number_does_not_stop_the_others() -> None:
    board = Notes()
    board.notes[f"{NOTE}dead"] = "0 1 other-machine:4711"
    with queue(board, where="model 'm'", pace=FAST) as confirm:
        confirm()


def test_a_block_that_takes_longer_than_a_note_lives_is_not_disturbed() -> None:
    board, order = Notes(), []

    def second() -> None:
        with queue(board, where="model 'm'", pace=FAST):
            order.append("second")

    with queue(board, where="model 'm'", pace=FAST) as confirm:
        other = threading.Thread(target=second)
        other.start()
        time.sleep(3 * FAST.life)
        confirm()
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_who_was_taken_for_dead_finds_out_before_it_does_harm() -> None:
    board = Notes()
    with queue(board, where="model 'm'", pace=FAST) as confirm:
        confirm()
        del board.notes[next(key for key in board.notes if key.startswith(NOTE))]  # another waited long enough
        board.notes[f"{NOTE}other"] = "2 1 other-machine:4711"
        with pytest.raises(RegistryError, match=r"it was lost, .* Nothing was changed; try again"):
            confirm()


def test_who_could_not_renew_its_note_is_no_longer_sure_and_does_not_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board = Notes()
    with queue(board, where="model 'm'", pace=FAST) as confirm:
        board.down = True
        time.sleep(FAST.life)
        board.notes = {}  # others took it away
        board.down = False
        time.sleep(FAST.life / 2)
        assert board.notes == {}, "it is not put up again"
        with pytest.raises(RegistryError, match="was lost"):
            confirm()
    assert "could not be renewed" in caplog.text


def test_a_lease_that_is_long_held_is_told_with_its_holder() -> None:
    board = Notes()
    with queue(board, where="model 'm'", pace=FAST) as confirm:
        with (
            pytest.raises(RegistryError, match=r"free within 0 s; .*:\d+ still holds it"),
            queue(board, where="model 'm'", pace=FAST._replace(patience=0.1)),
        ):
            pass
        confirm()


def test_a_lease_that_cannot_be_given_back_costs_no_promotion(caplog: pytest.LogCaptureFixture) -> None:
    board = Notes()
    with queue(board, where="model 'm'", pace=FAST):
        board.down = True
    assert "could not be given back, and ends by itself" in caplog.text


def test_what_is_not_there_cannot_be_leased(caplog: pytest.LogCaptureFixture) -> None:
    class Nothing(Notes):
        def write(self, key: str, value: str) -> None:
            raise NoSuchModel("Model 'm' is not in the store.")

    with pytest.raises(NoSuchModel), queue(Nothing(), where="model 'm'", pace=FAST):
        pass
    assert caplog.text == ""
