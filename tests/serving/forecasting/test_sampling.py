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
from serving.errors import Problem
from serving.forecasting.sampling import LEAST, in_rounds
from tests.factories import make_spec, one_series, wave
from tests.forecaster.prediction.test_carry import learned
from tests.serving.conftest import LastValue, MakeClient, StubForecaster, publish_stub, series
from tests.serving.routes.test_openapi import faults, schema_of

STEPS = 1 << 17  # so that no round has more than the least


def counted(series: int, *, seconds: float = 0.0) -> Any:
    """Draws numbers that say which path they are, and takes its time; what it was asked for lies in `asked`."""
    asked: list[range] = []

    def draw(some: range, until: Deadline) -> list[np.ndarray | ForecasterError]:
        until.check()
        asked.append(some)
        time.sleep(seconds)
        return [np.array(some, dtype=float)[:, None] + 1000 * one for one in range(series)]

    return draw, asked


@pytest.mark.parametrize("samples", [1, LEAST, LEAST + 1, 95])
def test_with_time_enough_every_path_is_drawn_once_and_in_order(samples: int) -> None:
    draw, asked = counted(2)
    one, other = in_rounds(draw, samples=samples, steps=STEPS, deadline=Deadline.after(60))
    np.testing.assert_array_equal(one[:, 0], np.arange(samples))
    np.testing.assert_array_equal(other[:, 0], 1000 + np.arange(samples))
    assert max(map(len, asked)) <= LEAST


def test_rounds_double_while_there_is_time_and_no_further_than_they_may() -> None:
    draw, asked = counted(1)
    in_rounds(draw, samples=1000, steps=900, deadline=Deadline.after(60))
    assert list(map(len, asked)) == [20, 40, 80, 145, 145, 145, 145, 145, 135]


def test_small_work_is_done_in_one_round() -> None:
    draw, asked = counted(1)
    in_rounds(draw, samples=500, steps=24, deadline=Deadline.after(60))
    assert asked == [range(500)]


def test_what_is_done_when_the_deadline_comes_near_is_the_answer() -> None:
    draw, asked = counted(1, seconds=0.05)
    deadline = Deadline.after(0.5)
    [paths] = in_rounds(draw, samples=100_000, steps=STEPS, deadline=deadline)
    assert LEAST <= len(paths) < 100_000
    assert len(paths) == asked[-1].stop
    assert deadline.left > 0


def test_a_round_that_does_not_end_in_time_is_left_out() -> None:
    def draw(some: range, until: Deadline) -> list[np.ndarray | ForecasterError]:
        if some.start:
            raise until.problem()
        return [np.zeros((len(some), 1))]

    [paths] = in_rounds(draw, samples=500, steps=STEPS, deadline=Deadline.after(60))
    assert len(paths) == LEAST


def test_before_the_least_were_drawn_there_is_no_answer() -> None:
    draw, _ = counted(1)
    with pytest.raises(Problem) as caught:
        in_rounds(draw, samples=500, steps=STEPS, deadline=Deadline.after(0))
    assert caught.value.code == "deadline_passed"


def test_a_series_that_is_refused_is_so_in_every_round() -> None:
    fault = HistoryTooShort("short")

    def draw(some: range, until: Deadline) -> list[np.ndarray | ForecasterError]:
        return [fault, np.zeros((len(some), 1))]

    found = in_rounds(draw, samples=50, steps=STEPS, deadline=Deadline.after(60))
    assert found[0] is fault
    assert isinstance(found[1], np.ndarray)


class Slow(LastValue):
    """Draws as long as the number of paths wants: a millisecond each."""

    def sample_each(
        self, series: Sequence[Series], horizon: int, *, paths: int, seed: int, first: int = 0
    ) -> list[np.ndarray | ForecasterError]:
        time.sleep(paths * len(series) / 1000)
        return super().sample_each(series, horizon, paths=paths, seed=seed, first=first)


@pytest.mark.parametrize("path", ["/v1/forecast", "/v1/scenarios"])
def test_an_answer_with_fewer_samples_says_so_as_documented(
    slot_folder: Path, make_client: MakeClient, path: str
) -> None:
    publish_stub(slot_folder)
    spec = make_spec(covariates=["promo"], context=3, min_history=3)
    client = make_client(load=lambda _: Slow(StubForecaster(spec=spec)), max_samples=10_000, max_answer=10**7)
    item = series(covariates={"promo": [1.0] * 903})
    many = (
        {"series": item, "scenarios": [{"name": "a", "covariates": {}}]} if "scenarios" in path else {"series": [item]}
    )
    ask = {"horizon": 900, "samples": 10_000, "deadline_ms": 600}
    answer = client.post(path, json={**many, **ask})
    assert answer.status_code == 200, answer.text
    [found] = next(part for name, part in answer.json().items() if name != "model")
    assert LEAST <= found["samples_used"] == len(found["samples"]) < 10_000
    assert f"{found['samples_used']} of 10000 samples" in " ".join(found["warnings"])
    np.testing.assert_array_equal(np.array(found["samples"])[:, 0], 2.5 + np.arange(found["samples_used"]))
    document = client.get("/docs.json").json()
    assert faults(answer.json(), schema_of(document, "post", path, 200), document) == []
    whole = client.post(path, json={**many, "horizon": 2, "samples": 30}).json()
    assert "samples_used" not in str(whole)
    assert client.post(path, json={**many, **ask, "deadline_ms": 1}).status_code == 504


@pytest.mark.parametrize("members", [1, 3])
def test_paths_drawn_in_rounds_are_those_drawn_at_once(members: int) -> None:
    one = learned(head={"kind": "gaussian"}, members=members)
    predictor = Predictor(
        replace(one, others=tuple(learned(head={"kind": "gaussian"}).network for _ in range(members - 1)))
    )
    history = one_series(wave(40))
    [whole] = predictor.sample_each([history], 5, paths=50, seed=1)
    parts = [
        predictor.sample_each([history], 5, paths=len(some), seed=1, first=some.start)[0]
        for some in (range(20), range(20, 27), range(27, 50))
    ]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)  # type: ignore[arg-type]
