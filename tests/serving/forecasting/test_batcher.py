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
from serving.deployment.slot import DeployedModel, Release, load_bundle
from serving.errors import ApiError
from serving.forecasting import answer as answering
from serving.forecasting import batcher
from serving.forecasting.answer import EncodedResponse, RawRequest
from serving.forecasting.batcher import Batcher, PendingRequest
from serving.settings import Settings
from tests.factories import make_forecaster, make_spec
from tests.serving.conftest import LastValuePredictor, StubModel, series_payload

SETTINGS = Settings()
RELEASE = Release(name="stub", version="1", digest="0" * 64)


class CallCounter(LastValuePredictor):
    """Counts how often it is asked, and of how many series; refuses to answer at all where a value is 13."""

    def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> list[Forecast | ForecasterError]:
        CALL_SIZES.append(len(series))
        if any((one.y == 13).any() for one in series):
            raise RuntimeError("thirteen")
        return super().forecast_batch(series, horizon, levels=levels)


CALL_SIZES: list[int] = []
MODEL = DeployedModel(RELEASE, CallCounter(), "")


@pytest.fixture(autouse=True)
def _reset_calls() -> None:
    CALL_SIZES.clear()


def make_batcher_request(
    *payloads: dict[str, Any], model: DeployedModel | None = MODEL, seconds: float = 60, **fields: Any
) -> RawRequest:
    body = json.dumps({"series": list(payloads) or [series_payload()], "horizon": 2, **fields}).encode()
    return RawRequest(body, "application/json", model, Deadline.after(seconds))


def describe_outcome(outcome: EncodedResponse | Exception) -> Any:
    if isinstance(outcome, EncodedResponse):
        return json.loads(outcome.body)
    return (outcome.status, outcome.code, outcome.where) if isinstance(outcome, ApiError) else repr(outcome)


def forecast_alone(request: RawRequest) -> Any:
    try:
        return describe_outcome(answering.run_forecast(request, SETTINGS))
    except Exception as error:
        return describe_outcome(error)


def test_equal_requests_are_batched_and_each_gets_its_own_response() -> None:
    requests = [
        make_batcher_request(series_payload(id=str(number), y=[1.0, 2.0, float(number)])) for number in range(5)
    ]
    found = batcher.respond_to_batch(requests, SETTINGS)
    assert CALL_SIZES == [5]
    assert [describe_outcome(one) for one in found] == [forecast_alone(one) for one in requests]


def test_horizons_levels_and_models_are_not_mixed() -> None:
    other = DeployedModel(Release(name="stub", version="2", digest="1" * 64), CallCounter(shift=5.0), "")
    requests = [
        make_batcher_request(),
        make_batcher_request(horizon=3),
        make_batcher_request(levels=[0.1, 0.9]),
        make_batcher_request(model=other),
        make_batcher_request(),
        make_batcher_request(series_payload(id="b"), model=other),
        make_batcher_request(samples=2),
    ]
    found = batcher.respond_to_batch(requests, SETTINGS)
    assert sorted(CALL_SIZES) == [1, 1, 1, 2, 2]
    assert [describe_outcome(one) for one in found] == [forecast_alone(one) for one in requests]
    assert [describe_outcome(one)["model"]["version"] for one in found] == ["1", "1", "1", "2", "1", "2", "1"]


@pytest.mark.parametrize(
    "invalid",
    [
        lambda: make_batcher_request(series_payload(y=[])),
        lambda: make_batcher_request(series_payload(y=[1.0])),
        lambda: make_batcher_request(series_payload(freq="D")),
        lambda: make_batcher_request(series_payload(), series_payload(y=[1.0], id="short")),
        lambda: make_batcher_request(horizon=0),
        lambda: make_batcher_request(stranger=1),
        lambda: make_batcher_request()._replace(body=b"{"),
        lambda: make_batcher_request(model=None),
        lambda: make_batcher_request(series_payload(y=[1.0, 2.0, 13.0])),
        lambda: make_batcher_request(seconds=0),
        lambda: make_batcher_request(deadline_ms=1, horizon=2)._replace(deadline=Deadline.after(-1)),
    ],
)
def test_a_bad_series_gets_its_own_error_and_affects_no_other(invalid: Callable[[], RawRequest]) -> None:
    good = [make_batcher_request(series_payload(id=name)) for name in ("a", "b", "c")]
    requests = [good[0], invalid(), *good[1:]]
    found = batcher.respond_to_batch(requests, SETTINGS)
    assert [describe_outcome(one) for one in found] == [forecast_alone(one) for one in requests]
    assert [isinstance(one, EncodedResponse) for one in (found[0], *found[2:])] == [True] * 3


@pytest.mark.parametrize("fields", [{}, {"decoder": "direct"}])
def test_a_batched_request_gets_the_same_response_as_alone(tmp_path: Path, fields: dict[str, Any]) -> None:
    artifact.save_bundle(make_forecaster(make_spec(**fields)), tmp_path / "bundle", card="")
    model, draw = DeployedModel(RELEASE, load_bundle(tmp_path / "bundle"), ""), np.random.default_rng(0)
    requests = [
        make_batcher_request(series_payload(y=draw.normal(size=6 + 5 * number).tolist()), model=model)
        for number in range(4)
    ]
    for one, found in zip(requests, batcher.respond_to_batch(requests, SETTINGS), strict=True):
        ours, expected = (answer["forecasts"][0]["mean"] for answer in (describe_outcome(found), forecast_alone(one)))
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_requests_waiting_during_a_rollout_form_the_next_batch() -> None:
    gate, inside = threading.Event(), threading.Event()

    class Slow(CallCounter):
        def forecast_batch(self, *some: Any, **fields: Any) -> Any:
            inside.set()
            gate.wait(10)
            return super().forecast_batch(*some, **fields)

    slow = DeployedModel(RELEASE, Slow(), "")

    async def story() -> None:
        admission, wait = Admission(threads=1, capacity=8, timeout_s=20), Batcher(SETTINGS)

        def ask(one: RawRequest) -> asyncio.Task[EncodedResponse]:
            ticket = PendingRequest(one)
            run = admission.run(wait.respond, ticket, deadline=one.deadline, on_admitted=lambda: wait.enqueue(ticket))
            return asyncio.create_task(run)

        first = ask(make_batcher_request(series_payload(id="first"), model=slow))
        await asyncio.to_thread(inside.wait, 10)
        others = [ask(make_batcher_request(series_payload(id=name), model=slow)) for name in "abcde"]
        late = ask(make_batcher_request(series_payload(id="late"), model=slow, seconds=0.05))
        with pytest.raises(ApiError) as problem:
            await late
        assert problem.value.status == 504
        gate.set()
        answers = await asyncio.gather(first, *others)
        assert [describe_outcome(one)["forecasts"][0]["id"] for one in answers] == ["first", *"abcde"]
        assert CALL_SIZES == [1, 5], "the one that was late is not computed"
        admission.close()

    asyncio.run(story())


def test_a_large_request_is_not_batched() -> None:
    wait = Batcher(SETTINGS)
    large, small = (
        PendingRequest(make_batcher_request(series_payload(y=[1.0] * count), series_payload(id="b")))
        for count in (20_000, 3)
    )
    for ticket in (large, small):
        wait.enqueue(ticket)
    wait.respond(large)
    assert small.outcome is None
    assert CALL_SIZES == [2]
    wait.respond(small)
    assert CALL_SIZES == [2, 2]


def test_with_several_threads_requests_do_not_wait_for_each_other() -> None:
    wait, tickets = (
        Batcher(SETTINGS.model_copy(update={"rollouts": 2})),
        [PendingRequest(make_batcher_request()) for _ in range(2)],
    )
    for ticket in tickets:
        wait.enqueue(ticket)
    wait.respond(tickets[0])
    assert tickets[1].outcome is None


class SteppingClock:
    """Every look at it is a moment later."""

    def __init__(self, step: float = 0.0) -> None:
        self.each, self._now = step, 0.0

    def __call__(self) -> float:
        self._now += self.each
        return self._now


BLENDED_PREDICTOR = CallCounter(StubModel(blend_weights={"network": 0.5, "theta": 0.5}))


def test_a_request_runs_inline_once_a_similar_one_was_fast() -> None:
    wait = Batcher(SETTINGS, clock=SteppingClock())
    first, second = (
        PendingRequest(make_batcher_request()),
        PendingRequest(make_batcher_request(series_payload(y=[5.0, 6.0, 7.0]))),
    )
    assert wait.try_immediately(first) is None, "what it takes is not known yet"
    assert describe_outcome(wait.respond(first)) == forecast_alone(first.request)
    found = wait.try_immediately(second)
    assert found is not None
    assert describe_outcome(found) == forecast_alone(second.request)


@pytest.mark.parametrize(
    "make_request",
    [
        lambda: make_batcher_request(horizon=20),
        lambda: make_batcher_request(levels=[0.1, 0.9]),
        lambda: make_batcher_request(series_payload(y=[1.0] * 40)),
        lambda: make_batcher_request(series_payload(), series_payload(id="b")),
        lambda: make_batcher_request(
            model=DeployedModel(Release(name="stub", version="2", digest="1" * 64), CallCounter(), "")
        ),
    ],
)
def test_the_measured_time_does_not_apply_to_larger_requests(make_request: Callable[[], RawRequest]) -> None:
    wait = Batcher(SETTINGS, clock=SteppingClock())
    _answer_and_measure(wait, make_batcher_request())
    assert wait.try_immediately(PendingRequest(make_batcher_request())) is not None
    assert wait.try_immediately(PendingRequest(make_request())) is None


@pytest.mark.parametrize(
    "make_request",
    [
        lambda: make_batcher_request(samples=2),
        lambda: make_batcher_request(return_state=True),
        lambda: make_batcher_request(model=DeployedModel(RELEASE, BLENDED_PREDICTOR, "")),
        lambda: make_batcher_request(model=None),
        lambda: make_batcher_request()._replace(media_type="application/vnd.apache.arrow.stream"),
        lambda: make_batcher_request(series_payload(id="a" * 60, y=[1.0] * 4000)),
    ],
)
def test_some_requests_never_run_inline(make_request: Callable[[], RawRequest]) -> None:
    wait = Batcher(SETTINGS, clock=SteppingClock())
    with suppress(ApiError):
        _answer_and_measure(wait, make_request())
    assert wait.try_immediately(PendingRequest(make_request())) is None


def test_a_slow_kind_of_request_is_queued_until_it_is_fast_again() -> None:
    clock = SteppingClock()
    wait = Batcher(SETTINGS, clock=clock)
    _answer_and_measure(wait, make_batcher_request())
    assert wait.try_immediately(PendingRequest(make_batcher_request())) is not None
    clock.each = 8 * batcher.MAX_IMMEDIATE_S
    assert wait.try_immediately(PendingRequest(make_batcher_request())) is not None, (
        "nothing told that it would be slow"
    )
    clock.each = 0.0
    for _ in range(3):
        _answer_and_measure(wait, make_batcher_request())
    assert wait.try_immediately(PendingRequest(make_batcher_request())) is not None


def test_the_number_of_measured_kinds_is_bounded() -> None:
    wait = Batcher(SETTINGS, clock=SteppingClock())
    for horizon in range(1, 301):
        _answer_and_measure(wait, make_batcher_request(horizon=horizon))
    assert wait.try_immediately(PendingRequest(make_batcher_request(horizon=1))) is None
    assert wait.try_immediately(PendingRequest(make_batcher_request(horizon=300))) is not None


def test_an_invalid_request_is_rejected_inline() -> None:
    with pytest.raises(ApiError) as problem:
        Batcher(SETTINGS).try_immediately(PendingRequest(make_batcher_request(horizon=0)))
    assert problem.value.status == 422


def _answer_and_measure(wait: Batcher, request: RawRequest) -> None:
    ticket = PendingRequest(request)
    assert wait.try_immediately(ticket) is None
    wait.respond(ticket)
