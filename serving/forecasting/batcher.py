"""Small requests that wait while a worker computes are rolled together: a batch takes hardly longer than one of them.

Each request still has its turn in the queue of the threads, its place, its deadline. Whoever's turn comes first takes those
that wait along, so that nobody waits for company: an idle worker begins at once. Their own turns then find the answer there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, thread_time

from serving.deployment.slot import InUse
from serving.forecasting.answer import Answered, Asked, Read, answer, computed, read, written
from serving.forecasting.outcomes import together
from serving.formats.schema import CarriedSeries
from serving.settings import Settings

MOST_REQUESTS = 32  # that are rolled together
MOST_BYTES = 64_000  # of the body of one; larger ones fill a batch alone
MOST_STEPS = (
    1 << 14
)  # known and foretold, of one; the batch then stays below what is rolled between looks at a deadline
BYTES_AT_ONCE = 8_000  # of the body of one that may be answered where it came in
MOMENT_S = 0.004  # that everyone else waits for that
_KINDS = 256  # of requests that are remembered
_JSON = "application/json"  # other forms may have to load what reads them


class Ticket:
    """A request; what was read of it, where that was done before its turn; and, once it was computed, what became of it."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.read: Read | None = None
        self.found: Answered | Exception | None = None

    def told(self) -> Answered:
        """Its answer; raises what stood in its way."""
        assert self.found is not None, "it was computed"
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Batcher:
    """Those that wait; nobody, where several threads compute at a time: they would wait for each other."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = thread_time) -> None:
        """Nobody waits yet; the clock tells the seconds that the thread which asks has worked."""
        self._settings = settings
        self._clock = clock
        self._waiting: deque[Ticket] = deque()
        self._lately = Lately()

    def at_once(self, one: Ticket) -> Answered | None:
        """The answer to a request that is alone, if it is certain to take no more than a moment; None if it has to wait.

        Raises Problem as `serving.forecasting.answer.answer` does.
        """
        if one.asked.media_type != _JSON or len(one.asked.body) > BYTES_AT_ONCE:
            return None
        one.read = read(one.asked, self._settings)
        if not _plain(one.read) or self._lately.seconds(one.read) > MOMENT_S:
            return None
        began = self._clock()
        found = computed(one.read)
        self._lately.note(one.read, self._clock() - began)
        return found

    def wait(self, one: Ticket) -> None:
        """A request that was admitted waits for its turn. A large one is answered alone."""
        if self._settings.rollouts == 1 and len(one.asked.body) <= MOST_BYTES:
            self._waiting.append(one)

    def answer(self, one: Ticket) -> Answered:
        """Its turn: answers it, and all that wait by now. Raises Problem as `serving.forecasting.answer.answer` does."""
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
        began = self._clock()
        for one, found in zip(those, answers([one.read or one.asked for one in those], self._settings), strict=True):
            one.found = found
        if len(those) == 1 and first.read is not None and _plain(first.read):
            self._lately.note(first.read, self._clock() - began)


class Lately:
    """How long small requests took that were answered alone, by what they ask. Slow ones are believed at once, fast ones later.

    In seconds that the thread has worked: that a machine is busy says nothing of a request.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[object, ...], float] = {}

    def seconds(self, one: Read) -> float:
        """Those of one like this; infinity where there was none."""
        return self._seconds.get(_sort(one), math.inf)

    def note(self, one: Read, seconds: float) -> None:
        """Remembers what it took; everything is forgotten where the kinds are too many."""
        sort = _sort(one)
        before = self._seconds.get(sort, seconds)
        if len(self._seconds) >= _KINDS and sort not in self._seconds:
            self._seconds.clear()
        self._seconds[sort] = max(seconds, (seconds + before) / 2)


def answers(requests: Sequence[Asked | Read], settings: Settings) -> list[Answered | Exception]:
    """The answer to each request, or what stands in its way; that of one is no other in company."""
    if len(requests) == 1:
        return [_alone(requests[0], settings)]
    found: list[Answered | Exception | None] = []
    groups: dict[tuple[object, ...], list[tuple[int, Read]]] = {}
    for place, asked in enumerate(requests):
        try:
            one = asked if isinstance(asked, Read) else read(asked, settings)
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


def _plain(one: Read) -> bool:
    """Whether it asks for nothing but forecasts of whole histories; states may need what is not loaded yet."""
    return _joins(one) and not one.ask.return_state and not any(isinstance(each, CarriedSeries) for each in one.series)


def _sort(one: Read) -> tuple[object, ...]:
    """What tells how long it takes: the model, how many series, how long about, how far ahead, how many levels."""
    model, ask = one.asked.model, one.ask
    assert isinstance(model, InUse), "it would not be plain"
    steps = sum(len(series.y) for series in one.series)
    return model.release.digest, len(one.series), steps.bit_length(), ask.horizon, len(ask.levels)


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


def _alone(asked: Asked | Read, settings: Settings) -> Answered | Exception:
    try:
        return computed(asked) if isinstance(asked, Read) else answer(asked, settings)
    except Exception as error:
        return error
