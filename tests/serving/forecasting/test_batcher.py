"""Queued requests are batched, and each gets the same response as alone."""

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
from serving.deployment.releases import Release
from serving.deployment.slot import DeployedModel, load_bundle
from serving.errors import ApiError
from serving.forecasting import answer as answering
from serving.forecasting import batcher
from serving.forecasting.answer import EncodedResponse, RawRequest
from serving.forecasting.batcher import Batcher, PendingRequest
from serving.settings import Settings
from tests.factories import make_fitted_model, make_spec
from tests.serving.conftest import LastValuePredictor, StubModel, series_payload

SETTINGS = Settings()
RELEASE = Release(name="stub", version="1", digest="0" * 64)


class CallCounter(LastValuePredictor):
    """Records the size of every batch; raises an unexpected exception if a value is 13."""

    def forecast_batch(
        self, series: Sequence[Series], horizon: int, *, levels: Sequence[float] = ()
    ) -> list[Forecast | ForecasterError]:
        CALL_SIZES.append(len(series))
        if any((each.y == 13).any() for each in series):
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
    outcomes = batcher.respond_to_batch(requests, SETTINGS)
    assert CALL_SIZES == [5]
    assert [describe_outcome(item) for item in outcomes] == [forecast_alone(item) for item in requests]


def test_horizons_levels_and_models_are_not_mixed() -> None:
    other_model = DeployedModel(Release(name="stub", version="2", digest="1" * 64), CallCounter(shift=5.0), "")
    requests = [
        make_batcher_request(),
        make_batcher_request(horizon=3),
        make_batcher_request(levels=[0.1, 0.9]),
        make_batcher_request(model=other_model),
        make_batcher_request(),
        make_batcher_request(series_payload(id="b"), model=other_model),
        make_batcher_request(samples=2),
    ]
    outcomes = batcher.respond_to_batch(requests, SETTINGS)
    assert sorted(CALL_SIZES) == [1, 1, 1, 2, 2]
    assert [describe_outcome(item) for item in outcomes] == [forecast_alone(item) for item in requests]
    assert [describe_outcome(item)["model"]["version"] for item in outcomes] == ["1", "1", "1", "2", "1", "2", "1"]


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
    valid = [make_batcher_request(series_payload(id=name)) for name in ("a", "b", "c")]
    requests = [valid[0], invalid(), *valid[1:]]
    outcomes = batcher.respond_to_batch(requests, SETTINGS)
    assert [describe_outcome(item) for item in outcomes] == [forecast_alone(item) for item in requests]
    assert [isinstance(item, EncodedResponse) for item in (outcomes[0], *outcomes[2:])] == [True] * 3


@pytest.mark.parametrize("fields", [{}, {"decoder": "direct"}])
def test_a_batched_request_gets_the_same_response_as_alone(tmp_path: Path, fields: dict[str, Any]) -> None:
    artifact.save_bundle(make_fitted_model(make_spec(**fields)), tmp_path / "bundle", card="")
    model, rng = DeployedModel(RELEASE, load_bundle(tmp_path / "bundle"), ""), np.random.default_rng(0)
    requests = [
        make_batcher_request(series_payload(y=rng.normal(size=6 + 5 * number).tolist()), model=model)
        for number in range(4)
    ]
    for request, outcome in zip(requests, batcher.respond_to_batch(requests, SETTINGS), strict=True):
        batched, alone = describe_outcome(outcome), forecast_alone(request)
        np.testing.assert_allclose(batched["forecasts"][0]["mean"], alone["forecasts"][0]["mean"], rtol=1e-5)


def test_requests_waiting_during_a_rollout_form_the_next_batch() -> None:
    released, started = threading.Event(), threading.Event()

    class BlockingPredictor(CallCounter):
        def forecast_batch(self, *args: Any, **options: Any) -> Any:
            started.set()
            released.wait(10)
            return super().forecast_batch(*args, **options)

    slow_model = DeployedModel(RELEASE, BlockingPredictor(), "")

    async def scenario() -> None:
        admission, request_batcher = Admission(threads=1, capacity=8, timeout_s=20), Batcher(SETTINGS)

        def send(request: RawRequest) -> asyncio.Task[EncodedResponse]:
            pending = PendingRequest(request)
            return asyncio.create_task(
                admission.run(
                    request_batcher.respond,
                    pending,
                    deadline=request.deadline,
                    on_admitted=lambda: request_batcher.enqueue(pending),
                )
            )

        first = send(make_batcher_request(series_payload(id="first"), model=slow_model))
        await asyncio.to_thread(started.wait, 10)
        others = [send(make_batcher_request(series_payload(id=name), model=slow_model)) for name in "abcde"]
        late = send(make_batcher_request(series_payload(id="late"), model=slow_model, seconds=0.05))
        with pytest.raises(ApiError) as error:
            await late
        assert error.value.status == 504
        released.set()
        responses = await asyncio.gather(first, *others)
        assert [describe_outcome(response)["forecasts"][0]["id"] for response in responses] == ["first", *"abcde"]
        assert CALL_SIZES == [1, 5], "the request past its deadline is not computed"
        admission.close()

    asyncio.run(scenario())


def test_a_large_request_is_not_batched() -> None:
    request_batcher = Batcher(SETTINGS)
    large, small = (
        PendingRequest(make_batcher_request(series_payload(y=[1.0] * count), series_payload(id="b")))
        for count in (20_000, 3)
    )
    for pending in (large, small):
        request_batcher.enqueue(pending)
    request_batcher.respond(large)
    assert small.outcome is None
    assert CALL_SIZES == [2]
    request_batcher.respond(small)
    assert CALL_SIZES == [2, 2]


def test_with_several_threads_requests_do_not_wait_for_each_other() -> None:
    request_batcher, queued = (
        Batcher(SETTINGS.model_copy(update={"rollouts": 2})),
        [PendingRequest(make_batcher_request()) for _ in range(2)],
    )
    for pending in queued:
        request_batcher.enqueue(pending)
    request_batcher.respond(queued[0])
    assert queued[1].outcome is None


class SteppingClock:
    """A clock that advances by `step` seconds at every call."""

    def __init__(self, step: float = 0.0) -> None:
        self.step, self._now = step, 0.0

    def __call__(self) -> float:
        self._now += self.step
        return self._now


BLENDED_PREDICTOR = CallCounter(StubModel(blend_weights={"network": 0.5, "theta": 0.5}))


def test_a_request_runs_inline_once_a_similar_one_was_fast() -> None:
    request_batcher = Batcher(SETTINGS, clock=SteppingClock())
    first, second = (
        PendingRequest(make_batcher_request()),
        PendingRequest(make_batcher_request(series_payload(y=[5.0, 6.0, 7.0]))),
    )
    assert request_batcher.try_immediately(first) is None, "there is no estimate yet"
    assert describe_outcome(request_batcher.respond(first)) == forecast_alone(first.request)
    response = request_batcher.try_immediately(second)
    assert response is not None
    assert describe_outcome(response) == forecast_alone(second.request)


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
    request_batcher = Batcher(SETTINGS, clock=SteppingClock())
    _respond_and_measure(request_batcher, make_batcher_request())
    assert request_batcher.try_immediately(PendingRequest(make_batcher_request())) is not None
    assert request_batcher.try_immediately(PendingRequest(make_request())) is None


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
    request_batcher = Batcher(SETTINGS, clock=SteppingClock())
    with suppress(ApiError):
        _respond_and_measure(request_batcher, make_request())
    assert request_batcher.try_immediately(PendingRequest(make_request())) is None


def test_a_slow_kind_of_request_is_queued_until_it_is_fast_again() -> None:
    clock = SteppingClock()
    request_batcher = Batcher(SETTINGS, clock=clock)
    _respond_and_measure(request_batcher, make_batcher_request())
    assert request_batcher.try_immediately(PendingRequest(make_batcher_request())) is not None
    clock.step = 8 * batcher.MAX_IMMEDIATE_S
    assert request_batcher.try_immediately(PendingRequest(make_batcher_request())) is not None, (
        "the estimate is still that of the fast request"
    )
    clock.step = 0.0
    for _ in range(3):
        _respond_and_measure(request_batcher, make_batcher_request())
    assert request_batcher.try_immediately(PendingRequest(make_batcher_request())) is not None


def test_the_number_of_measured_kinds_is_bounded() -> None:
    request_batcher = Batcher(SETTINGS, clock=SteppingClock())
    for horizon in range(1, 301):
        _respond_and_measure(request_batcher, make_batcher_request(horizon=horizon))
    assert request_batcher.try_immediately(PendingRequest(make_batcher_request(horizon=1))) is None
    assert request_batcher.try_immediately(PendingRequest(make_batcher_request(horizon=300))) is not None


def test_an_invalid_request_is_rejected_inline() -> None:
    with pytest.raises(ApiError) as error:
        Batcher(SETTINGS).try_immediately(PendingRequest(make_batcher_request(horizon=0)))
    assert error.value.status == 422


def _respond_and_measure(request_batcher: Batcher, request: RawRequest) -> None:
    pending = PendingRequest(request)
    assert request_batcher.try_immediately(pending) is None
    request_batcher.respond(pending)
