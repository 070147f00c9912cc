"""Samples under a deadline: the answer has those that were done in time, if they are enough, and says so."""

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

STEPS = 1 << 17  # so that no round has more than the least


def counting_sampler(series: int, *, seconds: float = 0.0) -> Any:
    """Draws numbers that say which path they are, and takes its time; what it was asked for lies in `asked`."""
    asked: list[range] = []

    def draw(some: range, until: Deadline) -> list[np.ndarray | ForecasterError]:
        until.check()
        asked.append(some)
        time.sleep(seconds)
        return [np.array(some, dtype=float)[:, None] + 1000 * one for one in range(series)]

    return draw, asked


@pytest.mark.parametrize("samples", [1, MIN_PATHS, MIN_PATHS + 1, 95])
def test_with_enough_time_every_path_is_sampled_once_in_order(samples: int) -> None:
    draw, asked = counting_sampler(2)
    one, other = sample_in_batches(draw, samples=samples, steps=STEPS, deadline=Deadline.after(60))
    np.testing.assert_array_equal(one[:, 0], np.arange(samples))
    np.testing.assert_array_equal(other[:, 0], 1000 + np.arange(samples))
    assert max(map(len, asked)) <= MIN_PATHS


def test_batch_sizes_double_up_to_the_limit_while_time_remains() -> None:
    draw, asked = counting_sampler(1)
    sample_in_batches(draw, samples=1000, steps=900, deadline=Deadline.after(60))
    assert list(map(len, asked)) == [20, 40, 80, 145, 145, 145, 145, 145, 135]


def test_few_samples_are_drawn_in_one_batch() -> None:
    draw, asked = counting_sampler(1)
    sample_in_batches(draw, samples=500, steps=24, deadline=Deadline.after(60))
    assert asked == [range(500)]


def test_samples_drawn_before_the_deadline_are_returned() -> None:
    draw, asked = counting_sampler(1, seconds=0.05)
    deadline = Deadline.after(0.5)
    [paths] = sample_in_batches(draw, samples=100_000, steps=STEPS, deadline=deadline)
    assert MIN_PATHS <= len(paths) < 100_000
    assert len(paths) == asked[-1].stop
    assert deadline.remaining_s > 0


def test_a_batch_past_the_deadline_is_discarded() -> None:
    def draw(some: range, until: Deadline) -> list[np.ndarray | ForecasterError]:
        if some.start:
            raise until.timeout_error()
        return [np.zeros((len(some), 1))]

    [paths] = sample_in_batches(draw, samples=500, steps=STEPS, deadline=Deadline.after(60))
    assert len(paths) == MIN_PATHS


def test_fewer_than_the_minimum_samples_are_an_error() -> None:
    draw, _ = counting_sampler(1)
    with pytest.raises(ApiError) as caught:
        sample_in_batches(draw, samples=500, steps=STEPS, deadline=Deadline.after(0))
    assert caught.value.code == "deadline_passed"


def test_a_rejected_series_is_rejected_in_every_batch() -> None:
    fault = HistoryTooShort("short")

    def draw(some: range, until: Deadline) -> list[np.ndarray | ForecasterError]:
        return [fault, np.zeros((len(some), 1))]

    found = sample_in_batches(draw, samples=50, steps=STEPS, deadline=Deadline.after(60))
    assert found[0] is fault
    assert isinstance(found[1], np.ndarray)


class SlowSampler(LastValuePredictor):
    """Draws as long as the number of paths wants: a millisecond each."""

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
    many = (
        {"series": item, "scenarios": [{"name": "a", "covariates": {}}]} if "scenarios" in path else {"series": [item]}
    )
    ask = {"horizon": 900, "samples": 10_000, "deadline_ms": 600}
    answer = client.post(path, json={**many, **ask})
    assert answer.status_code == 200, answer.text
    [found] = next(part for name, part in answer.json().items() if name != "model")
    assert MIN_PATHS <= found["samples_used"] == len(found["samples"]) < 10_000
    assert f"{found['samples_used']} of 10000 samples" in " ".join(found["warnings"])
    np.testing.assert_array_equal(np.array(found["samples"])[:, 0], 2.5 + np.arange(found["samples_used"]))
    document = client.get("/docs.json").json()
    assert schema_violations(answer.json(), response_schema(document, "post", path, 200), document) == []
    whole = client.post(path, json={**many, "horizon": 2, "samples": 30}).json()
    assert "samples_used" not in str(whole)
    assert client.post(path, json={**many, **ask, "deadline_ms": 1}).status_code == 504


@pytest.mark.parametrize("members", [1, 3])
def test_paths_sampled_in_batches_equal_those_sampled_at_once(members: int) -> None:
    one = make_model(head={"kind": "gaussian"}, members=members)
    predictor = Predictor(
        replace(one, other_networks=tuple(make_model(head={"kind": "gaussian"}).network for _ in range(members - 1)))
    )
    history = make_series(make_wave(40))
    [whole] = predictor.sample_batch([history], 5, paths=50, seed=1)
    parts = [
        predictor.sample_batch([history], 5, paths=len(some), seed=1, first_path=some.start)[0]
        for some in (range(20), range(20, 27), range(27, 50))
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)  # type: ignore[arg-type]
