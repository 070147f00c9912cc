"""Requests that wait are answered together, each as it would have been alone."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.errors import ForecasterError
from forecaster.series import Forecast, Series
from serving.asgi.admission import Admission
from serving.deadline import Deadline
from serving.deployment.slot import InUse, Release, load_bundle
from serving.errors import Problem
from serving.forecasting import answer as answering
from serving.forecasting import batcher
from serving.forecasting.answer import Answered, Asked
from serving.forecasting.batcher import Batcher, Ticket
from serving.settings import Settings
from tests.factories import make_forecaster, make_spec
from tests.serving.conftest import LastValue, StubForecaster, series

SETTINGS = Settings()
NAME = Release(name="stub", version="1", digest="0" * 64)


class Counting(LastValue):
    """Counts how often it is asked, and of how many series; refuses to answer at all where a value is 13."""

    def forecast_each(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> list[Forecast | ForecasterError]:
        CALLS.append(len(series))
        if any((one.y == 13).any() for one in series):
            raise RuntimeError("thirteen")
        return super().forecast_each(series, horizon, levels=levels)


CALLS: list[int] = []
MODEL = InUse(NAME, Counting(), "")


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def asked(*items: dict[str, Any], model: InUse | None = MODEL, seconds: float = 60, **fields: Any) -> Asked:
    body = json.dumps({"series": list(items) or [series()], "horizon": 2, **fields}).encode()
    return Asked(body, "application/json", model, Deadline.after(seconds))


def told(found: Answered | Exception) -> Any:
    if isinstance(found, Answered):
        return json.loads(found.body)
    return (found.status, found.code, found.where) if isinstance(found, Problem) else repr(found)


def alone(one: Asked) -> Any:
    try:
        return told(answering.answer(one, SETTINGS))
    except Exception as error:
        return told(error)


def test_those_that_ask_the_same_are_rolled_as_one_and_each_gets_its_own_answer() -> None:
    requests = [asked(series(id=str(number), y=[1.0, 2.0, float(number)])) for number in range(5)]
    found = batcher.answers(requests, SETTINGS)
    assert CALLS == [5]
    assert [told(one) for one in found] == [alone(one) for one in requests]


def test_horizons_levels_and_models_do_not_mix() -> None:
    other = InUse(Release(name="stub", version="2", digest="1" * 64), Counting(shift=5.0), "")
    requests = [
        asked(),
        asked(horizon=3),
        asked(levels=[0.1, 0.9]),
        asked(model=other),
        asked(),
        asked(series(id="b"), model=other),
        asked(samples=2),
    ]
    found = batcher.answers(requests, SETTINGS)
    assert sorted(CALLS) == [1, 1, 1, 2, 2]
    assert [told(one) for one in found] == [alone(one) for one in requests]
    assert [told(one)["model"]["version"] for one in found] == ["1", "1", "1", "2", "1", "2", "1"]


@pytest.mark.parametrize(
    "bad",
    [
        lambda: asked(series(y=[])),
        lambda: asked(series(y=[1.0])),
        lambda: asked(series(freq="D")),
        lambda: asked(series(), series(y=[1.0], id="short")),
        lambda: asked(horizon=0),
        lambda: asked(stranger=1),
        lambda: asked()._replace(body=b"{"),
        lambda: asked(model=None),
        lambda: asked(series(y=[1.0, 2.0, 13.0])),
        lambda: asked(seconds=0),
        lambda: asked(deadline_ms=1, horizon=2)._replace(deadline=Deadline.after(-1)),
    ],
)
def test_a_bad_one_gets_its_own_error_and_spoils_no_neighbour(bad: Callable[[], Asked]) -> None:
    good = [asked(series(id=name)) for name in ("a", "b", "c")]
    requests = [good[0], bad(), *good[1:]]
    found = batcher.answers(requests, SETTINGS)
    assert [told(one) for one in found] == [alone(one) for one in requests]
    assert [isinstance(one, Answered) for one in (found[0], *found[2:])] == [True] * 3


@pytest.mark.parametrize("fields", [{}, {"decoder": "direct"}])
def test_a_network_answers_a_request_in_company_as_alone(tmp_path: Path, fields: dict[str, Any]) -> None:
    artifact.save(make_forecaster(make_spec(**fields)), tmp_path / "bundle", card="")
    model, draw = InUse(NAME, load_bundle(tmp_path / "bundle"), ""), np.random.default_rng(0)
    requests = [asked(series(y=draw.normal(size=6 + 5 * number).tolist()), model=model) for number in range(4)]
    for one, found in zip(requests, batcher.answers(requests, SETTINGS), strict=True):
        ours, expected = (answer["forecasts"][0]["mean"] for answer in (told(found), alone(one)))
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_who_waits_while_another_is_computed_is_answered_with_the_next_turn() -> None:
    gate, inside = threading.Event(), threading.Event()

    class Slow(Counting):
        def forecast_each(self, *some: Any, **fields: Any) -> Any:
            inside.set()
            gate.wait(10)
            return super().forecast_each(*some, **fields)

    slow = InUse(NAME, Slow(), "")

    async def story() -> None:
        admission, wait = Admission(threads=1, places=8, timeout_s=20), Batcher(SETTINGS)

        def ask(one: Asked) -> asyncio.Task[Answered]:
            ticket = Ticket(one)
            run = admission.run(wait.answer, ticket, deadline=one.deadline, admitted=lambda: wait.wait(ticket))
            return asyncio.create_task(run)

        first = ask(asked(series(id="first"), model=slow))
        await asyncio.to_thread(inside.wait, 10)
        others = [ask(asked(series(id=name), model=slow)) for name in "abcde"]
        late = ask(asked(series(id="late"), model=slow, seconds=0.05))
        with pytest.raises(Problem) as problem:
            await late
        assert problem.value.status == 504
        gate.set()
        answers = await asyncio.gather(first, *others)
        assert [told(one)["forecasts"][0]["id"] for one in answers] == ["first", *"abcde"]
        assert CALLS == [1, 5], "the one that was late is not computed"
        admission.close()

    asyncio.run(story())


def test_a_large_request_takes_no_company() -> None:
    wait = Batcher(SETTINGS)
    large, small = (Ticket(asked(series(y=[1.0] * count), series(id="b"))) for count in (20_000, 3))
    for ticket in (large, small):
        wait.wait(ticket)
    wait.answer(large)
    assert small.found is None
    assert CALLS == [2]
    wait.answer(small)
    assert CALLS == [2, 2]


def test_where_several_threads_compute_nobody_waits_for_another() -> None:
    wait, tickets = Batcher(SETTINGS.model_copy(update={"rollouts": 2})), [Ticket(asked()) for _ in range(2)]
    for ticket in tickets:
        wait.wait(ticket)
    wait.answer(tickets[0])
    assert tickets[1].found is None


class Clock:
    """Every look at it is a moment later."""

    def __init__(self, each: float = 0.0) -> None:
        self.each, self._now = each, 0.0

    def __call__(self) -> float:
        self._now += self.each
        return self._now


BLENDED = Counting(StubForecaster(blend={"network": 0.5, "theta": 0.5}))


def test_a_request_is_answered_where_it_came_in_once_one_like_it_took_a_moment() -> None:
    wait = Batcher(SETTINGS, clock=Clock())
    first, second = Ticket(asked()), Ticket(asked(series(y=[5.0, 6.0, 7.0])))
    assert wait.at_once(first) is None, "what it takes is not known yet"
    assert told(wait.answer(first)) == alone(first.asked)
    found = wait.at_once(second)
    assert found is not None
    assert told(found) == alone(second.asked)


@pytest.mark.parametrize(
    "other",
    [
        lambda: asked(horizon=20),
        lambda: asked(levels=[0.1, 0.9]),
        lambda: asked(series(y=[1.0] * 40)),
        lambda: asked(series(), series(id="b")),
        lambda: asked(model=InUse(Release(name="stub", version="2", digest="1" * 64), Counting(), "")),
    ],
)
def test_what_one_took_says_nothing_of_one_that_asks_for_more(other: Callable[[], Asked]) -> None:
    wait = Batcher(SETTINGS, clock=Clock())
    _known(wait, asked())
    assert wait.at_once(Ticket(asked())) is not None
    assert wait.at_once(Ticket(other())) is None


@pytest.mark.parametrize(
    "never",
    [
        lambda: asked(samples=2),
        lambda: asked(return_state=True),
        lambda: asked(model=InUse(NAME, BLENDED, "")),
        lambda: asked(model=None),
        lambda: asked()._replace(media_type="application/vnd.apache.arrow.stream"),
        lambda: asked(series(id="a" * 60, y=[1.0] * 4000)),
    ],
)
def test_some_are_never_answered_where_they_came_in(never: Callable[[], Asked]) -> None:
    wait = Batcher(SETTINGS, clock=Clock())
    with suppress(Problem):
        _known(wait, never())
    assert wait.at_once(Ticket(never())) is None


def test_a_kind_that_was_slow_waits_for_its_turn_until_it_is_fast_again() -> None:
    clock = Clock()
    wait = Batcher(SETTINGS, clock=clock)
    _known(wait, asked())
    assert wait.at_once(Ticket(asked())) is not None
    clock.each = 8 * batcher.MOMENT_S
    assert wait.at_once(Ticket(asked())) is not None, "nothing told that it would be slow"
    clock.each = 0.0
    for _ in range(3):
        _known(wait, asked())
    assert wait.at_once(Ticket(asked())) is not None


def test_kinds_without_end_are_not_remembered_without_end() -> None:
    wait = Batcher(SETTINGS, clock=Clock())
    for horizon in range(1, 301):
        _known(wait, asked(horizon=horizon))
    assert wait.at_once(Ticket(asked(horizon=1))) is None
    assert wait.at_once(Ticket(asked(horizon=300))) is not None


def test_a_request_that_cannot_be_read_is_refused_where_it_came_in() -> None:
    with pytest.raises(Problem) as problem:
        Batcher(SETTINGS).at_once(Ticket(asked(horizon=0)))
    assert problem.value.status == 422


def _known(wait: Batcher, one: Asked) -> None:
    ticket = Ticket(one)
    assert wait.at_once(ticket) is None
    wait.answer(ticket)
