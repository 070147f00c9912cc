"""Sampling under a deadline: the response has the samples drawn in time, if there are enough, and reports their number."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.errors import ForecasterError, HistoryTooShort
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from serving.deadline import Deadline
from serving.errors import ApiError
from serving.forecasting.sampling import MIN_PATHS, sample_in_batches
from tests.factories import make_series, make_spec, make_wave
from tests.forecaster.prediction.test_carry import make_model
from tests.serving.conftest import LastValuePredictor, MakeClient, StubModel, publish_stub, series_payload
from tests.serving.routes.test_openapi import response_schema, schema_violations

pytestmark = pytest.mark.integration

STEPS = 1 << 17  # so large that every batch has MIN_PATHS paths


def counting_sampler(series: int, *, seconds: float = 0.0) -> Any:
    """Returns a sampler whose paths are their numbers plus 1000 per series, and the list of the batches it has drawn."""
    batches: list[range] = []

    def draw(numbers: range, deadline: Deadline) -> list[np.ndarray | ForecasterError]:
        deadline.check()
        batches.append(numbers)
        time.sleep(seconds)
        return [np.array(numbers, dtype=float)[:, None] + 1000 * index for index in range(series)]

    return draw, batches


@pytest.mark.parametrize("samples", [1, MIN_PATHS, MIN_PATHS + 1, 95])
def test_with_enough_time_every_path_is_sampled_once_in_order(samples: int) -> None:
    draw, batches = counting_sampler(2)
    first, second = sample_in_batches(draw, samples=samples, steps=STEPS, deadline=Deadline.after(60))
    np.testing.assert_array_equal(first[:, 0], np.arange(samples))
    np.testing.assert_array_equal(second[:, 0], 1000 + np.arange(samples))
    assert max(map(len, batches)) <= MIN_PATHS


def test_batch_sizes_double_up_to_the_limit_while_time_remains() -> None:
    draw, batches = counting_sampler(1)
    sample_in_batches(draw, samples=1000, steps=900, deadline=Deadline.after(60))
    assert list(map(len, batches)) == [20, 40, 80, 145, 145, 145, 145, 145, 135]


def test_few_samples_are_drawn_in_one_batch() -> None:
    draw, batches = counting_sampler(1)
    sample_in_batches(draw, samples=500, steps=24, deadline=Deadline.after(60))
    assert batches == [range(500)]


def test_samples_drawn_before_the_deadline_are_returned() -> None:
    draw, batches = counting_sampler(1, seconds=0.05)
    deadline = Deadline.after(0.5)
    [paths] = sample_in_batches(draw, samples=100_000, steps=STEPS, deadline=deadline)
    assert MIN_PATHS <= len(paths) < 100_000
    assert len(paths) == batches[-1].stop
    assert deadline.remaining_s > 0


def test_a_batch_past_the_deadline_is_discarded() -> None:
    def draw(numbers: range, deadline: Deadline) -> list[np.ndarray | ForecasterError]:
        if numbers.start:
            raise deadline.timeout_error()
        return [np.zeros((len(numbers), 1))]

    [paths] = sample_in_batches(draw, samples=500, steps=STEPS, deadline=Deadline.after(60))
    assert len(paths) == MIN_PATHS


def test_fewer_than_the_minimum_samples_are_an_error() -> None:
    draw, _ = counting_sampler(1)
    with pytest.raises(ApiError) as error:
        sample_in_batches(draw, samples=500, steps=STEPS, deadline=Deadline.after(0))
    assert error.value.code == "deadline_passed"


def test_a_rejected_series_is_rejected_in_every_batch() -> None:
    error = HistoryTooShort("short")

    def draw(numbers: range, deadline: Deadline) -> list[np.ndarray | ForecasterError]:
        return [error, np.zeros((len(numbers), 1))]

    results = sample_in_batches(draw, samples=50, steps=STEPS, deadline=Deadline.after(60))
    assert results[0] is error
    assert isinstance(results[1], np.ndarray)


class SlowSampler(LastValuePredictor):
    """Takes a millisecond per path."""

    def sample_batch(
        self, series: Sequence[Series], horizon: int, *, paths: int, seed: int, first_path: int = 0
    ) -> list[np.ndarray | ForecasterError]:
        time.sleep(paths * len(series) / 1000)
        return super().sample_batch(series, horizon, paths=paths, seed=seed, first_path=first_path)


@pytest.mark.parametrize("path", ["/v1/forecast", "/v1/scenarios"])
def test_a_response_with_fewer_samples_says_so_as_documented(
    slot_folder: Path, make_client: MakeClient, path: str
) -> None:
    publish_stub(slot_folder)
    spec = make_spec(covariates=["promo"], context=3, min_history=3)
    client = make_client(load=lambda _: SlowSampler(StubModel(spec=spec)), max_samples=10_000, max_answer=10**7)
    item = series_payload(covariates={"promo": [1.0] * 903})
    body = (
        {"series": item, "scenarios": [{"name": "a", "covariates": {}}]} if "scenarios" in path else {"series": [item]}
    )
    options = {"horizon": 900, "samples": 10_000, "deadline_ms": 600}
    response = client.post(path, json={**body, **options})
    assert response.status_code == 200, response.text
    [forecast] = next(part for name, part in response.json().items() if name != "model")
    assert MIN_PATHS <= forecast["samples_used"] == len(forecast["samples"]) < 10_000
    assert f"{forecast['samples_used']} of 10000 samples" in " ".join(forecast["warnings"])
    np.testing.assert_array_equal(np.array(forecast["samples"])[:, 0], 2.5 + np.arange(forecast["samples_used"]))
    document = client.get("/docs.json").json()
    assert schema_violations(response.json(), response_schema(document, "post", path, 200), document) == []
    full_response = client.post(path, json={**body, "horizon": 2, "samples": 30}).json()
    assert "samples_used" not in str(full_response)
    assert client.post(path, json={**body, **options, "deadline_ms": 1}).status_code == 504


@pytest.mark.parametrize("members", [1, 3])
def test_paths_sampled_in_batches_equal_those_sampled_at_once(members: int) -> None:
    fitted_model = make_model(head={"kind": "gaussian"}, members=members)
    predictor = Predictor(
        replace(
            fitted_model,
            other_networks=tuple(make_model(head={"kind": "gaussian"}).network for _ in range(members - 1)),
        )
    )
    history = make_series(make_wave(40))
    [expected] = predictor.sample_batch([history], 5, paths=50, seed=1)
    batches = [
        predictor.sample_batch([history], 5, paths=len(numbers), seed=1, first_path=numbers.start)[0]
        for numbers in (range(20), range(20, 27), range(27, 50))
    ]
    np.testing.assert_allclose(np.concatenate(batches), expected, rtol=1e-6)  # type: ignore[arg-type]
