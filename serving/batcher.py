"""Small requests that wait while a worker computes are rolled together: a batch takes hardly longer than one of them.

Each request still has its turn in the queue of the threads, its place, its deadline. Whoever's turn comes first takes those
that wait along, so that nobody waits for company: an idle worker begins at once. Their own turns then find the answer there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from time import perf_counter

from serving.answer import Answered, Asked, Read, answer, computed, read, written
from serving.outcomes import together
from serving.settings import Settings
from serving.slot import InUse

MOST_REQUESTS = 32  # that are rolled together
MOST_BYTES = 64_000  # of the body of one; larger ones fill a batch alone
MOST_STEPS = (
    1 << 14
)  # known and foretold, of one; the batch then stays below what is rolled between looks at a deadline


class Ticket:
    """A request and, once it was computed, what became of it."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.found: Answered | Exception | None = None

    def told(self) -> Answered:
        """Its answer; raises what stood in its way."""
        assert self.found is not None, "it was computed"
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Batcher:
    """Those that wait; nobody, where several threads compute at a time: they would wait for each other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: deque[Ticket] = deque()

    def wait(self, one: Ticket) -> None:
        """A request that was admitted waits for its turn. A large one is answered alone."""
        if self._settings.rollouts == 1 and len(one.asked.body) <= MOST_BYTES:
            self._waiting.append(one)

    def answer(self, one: Ticket) -> Answered:
        """Its turn: answers it, and all that wait by now. Raises Problem as `serving.answer.answer` does."""
        if one.found is None:
            self._compute(one)
        return one.told()

    def _compute(self, first: Ticket) -> None:
        those = [first]
        while self._waiting and len(first.asked.body) <= MOST_BYTES and len(those) < MOST_REQUESTS:
            other = self._waiting.popleft()
            # Who has left, or was told that it is too late, is passed by: its own turn finds out.
            if other is not first and other.found is None and not other.asked.deadline.over:
                those.append(other)
        for one, found in zip(those, answers([one.asked for one in those], self._settings), strict=True):
            one.found = found


def answers(requests: Sequence[Asked], settings: Settings) -> list[Answered | Exception]:
    """The answer to each request, or what stands in its way; that of one is no other in company."""
    if len(requests) == 1:
        return [_alone(requests[0], settings)]
    found: list[Answered | Exception | None] = []
    groups: dict[tuple[object, ...], list[tuple[int, Read]]] = {}
    for place, asked in enumerate(requests):
        try:
            one = read(asked, settings)
            if _joins(one):
                groups.setdefault(_kind(one), []).append((place, one))
                found.append(None)
            else:
                found.append(computed(one))
        except Exception as error:  # whatever becomes of one, the others are answered
            found.append(error)
    for group in groups.values():
        for (place, _), told in zip(group, _together([one for _, one in group]), strict=True):
            found[place] = told
    return [one for one in found if one is not None]


def _joins(one: Read) -> bool:
    """Whether it is small and plain enough to be rolled with others; statistical models are fitted to each series alone."""
    model, ask = one.asked.model, one.ask
    if model is None or model.predictor.forecaster.blend or ask.samples:
        return False
    return sum(len(series.y) + ask.horizon for series in one.series) <= MOST_STEPS


def _kind(one: Read) -> tuple[object, ...]:
    """What must agree: the model, and what late actuals have taught about it; the horizon; the levels; states or none."""
    model, ask = one.asked.model, one.ask
    assert isinstance(model, InUse), "it would not have joined"
    taught = id(model.drift)  # held by those that wait, so no other gets its id
    return model.release, id(model.predictor), taught, ask.horizon, tuple(ask.levels), ask.return_state


def _together(group: Sequence[Read]) -> list[Answered | Exception]:
    if len(group) == 1:
        return [_finished(group[0])]
    began, first = perf_counter(), group[0]
    patient = max((one.asked.deadline for one in group), key=lambda deadline: deadline.left)
    model = first.asked.model
    assert isinstance(model, InUse), "they would not have joined"
    try:
        done = together([one.series for one in group], first.ask, model, patient, first.seal)
    except Exception:  # one of them, or all: each learns for itself
        return [_finished(one) for one in group]
    seconds = perf_counter() - began
    told: list[Answered | Exception] = []
    for one, outcomes in zip(group, done, strict=True):
        try:
            one.asked.deadline.within(one.ask.deadline_ms).check()
            told.append(written(one, outcomes, seconds))
        except Exception as error:
            told.append(error)
    return told


def _finished(one: Read) -> Answered | Exception:
    try:
        return computed(one)
    except Exception as error:
        return error


def _alone(asked: Asked, settings: Settings) -> Answered | Exception:
    try:
        return answer(asked, settings)
    except Exception as error:
        return error
