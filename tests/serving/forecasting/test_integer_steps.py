"""POST /v1/forecast of numbered steps: whole numbers in, whole numbers out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.data.encoding import PLAIN
from forecaster.model import regressor
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Series
from forecaster.spec import NetworkSpec, Spec
from serving.deployment.slot import Slot
from tests.serving.conftest import Client, MakeClient, load_stub, publish_stub, series

LAST = 2**62 - 1


@pytest.fixture
def tens(slot_folder: Path, make_client: MakeClient) -> Client:
    """An application whose model learned steps of ten."""
    publish_stub(slot_folder, freq="10")
    return make_client()


def ask(client: Client, *items: dict[str, Any], horizon: int = 2) -> Any:
    answer = client.post("/v1/forecast", json={"series": list(items), "horizon": horizon})
    assert answer.status_code == 200, answer.text
    return answer.json()["forecasts"]


def grid(start: Any = 17, freq: Any = 10, **fields: Any) -> dict[str, Any]:
    return series(start=start, freq=freq, **fields)


def stamped(*ds: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "a", "ds": list(ds), "y": [float(place) for place in range(len(ds))], **fields}


@pytest.mark.parametrize(
    ("item", "ds"),
    [
        (grid(), [47, 57]),
        (grid(freq="10"), [47, 57]),
        (grid(start=0), [30, 40]),
        (grid(start=-25), [5, 15]),
        (grid(start=LAST - 40), [LAST - 10, LAST]),
        (grid(start=-LAST), [30 - LAST, 40 - LAST]),
        (stamped(10, 20, 30), [40, 50]),
        (stamped(10, 20, 30, freq=10), [40, 50]),
        (stamped(10, 20, 30, freq="10"), [40, 50]),
        (stamped(20260101, 20260111, 20260121, freq=10), [20260131, 20260141]),
    ],
)
def test_numbers_are_answered_with_the_numbers_that_follow(tens: Client, item: dict[str, Any], ds: list[int]) -> None:
    [found] = ask(tens, item)
    assert found["ds"] == ds
    assert all(type(one) is int for one in found["ds"])
    assert found["mean"] == [item["y"][-1]] * 2


@pytest.mark.parametrize(
    ("item", "code", "told"),
    [
        (grid(freq=1), "frequency_mismatch", "another"),
        (grid(start="2026-01-01", freq="h"), "frequency_mismatch", "another"),
        (grid(start="2026-01-01"), "bad_stamp", "whole numbers as stamps, since the frequency is '10'"),
        (grid(freq="h"), "bad_stamp", "time stamps, since the frequency is 'h'; series 'a' has the whole number 17"),
        (grid(start="17"), "bad_stamp", "without quotes"),
        (grid(freq=0), "frequency_unknown", "'0' does not step forward"),
        (grid(freq=-10), "frequency_unknown", "'-10' does not step forward"),
        (grid(freq="010"), "frequency_unknown", "whole number"),
        (grid(freq="10.0"), "frequency_unknown", "whole number"),
        (grid(freq=10**18), "frequency_unknown", "not known"),
        (grid(start=LAST - 39), "bad_stamp", f"would pass {LAST}"),
        (grid(start=LAST + 1), "bad_stamp", f"has {LAST + 1} at place 0"),
        (grid(start=-(2**63)), "bad_stamp", "at place 0"),
        (stamped(10, 20, 2**63 - 1), "bad_stamp", "at place 2"),
        (stamped(10, 20, 20), "duplicate_stamp", "has 20 twice"),
        (stamped(30, 20, 10), "irregular_stamps", "goes back from 30 to 20"),
        (stamped(10, 20, 40, freq=10), "irregular_stamps", "has 40 at place 2 instead of 30"),
        (stamped(10, 20, 30, 40, 60, 70), "irregular_stamps", "goes from 40 to 60"),
        (stamped(10, 20, 40), "frequency_unknown", "not certain from 3 stamps"),
        (stamped(10), "frequency_unknown", "freq='1'"),
        (stamped(10, 20, 30, freq="D"), "bad_stamp", "since the frequency is 'D'"),
        (stamped("2026-01-01", "2026-01-02", freq=10), "bad_stamp", "since the frequency is '10'"),
        (stamped("2026-01-01T00:00", "2026-01-01T00:10", "2026-01-01T00:20"), "frequency_mismatch", "another"),
        (stamped(20260101, 20260111, 20260121), "bad_stamp", "such as 20260101, may be either"),
        (stamped(0, 10**15, freq=10), "irregular_stamps", "instead of 10"),
    ],
)
def test_what_is_no_numbered_series_of_the_models_is_refused_beside_its_neighbours(
    tens: Client, item: dict[str, Any], code: str, told: str
) -> None:
    before, refused, after = ask(tens, grid(), item, grid())
    assert refused["error"]["code"] == code, refused
    assert told in refused["error"]["message"]
    assert refused["error"]["where"] == "a"
    assert before["ds"] == after["ds"] == [47, 57]
    alone = tens.post("/v1/forecast", json={"series": [item], "horizon": 2})
    assert (alone.status_code, alone.json()["error"]) == (422, refused["error"])


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"start": 1.5}, "series.0.start"),
        ({"start": None}, "series.0.start"),
        ({"freq": True}, "series.0.freq"),
        ({"ds": [1, "2", 3]}, "series.0.ds.1"),
        ({"ds": ["2026-01-01", 2, 3]}, "series.0.ds.1"),
        ({"ds": [1, None, 3]}, "series.0.ds.1"),
    ],
)
def test_the_place_of_a_value_of_a_wrong_type_is_told(tens: Client, fields: dict[str, Any], where: str) -> None:
    asked = {"id": "a", "y": [1, 2, 3], **({} if "ds" in fields else {"start": 1, "freq": 10}), **fields}
    answer = tens.post("/v1/forecast", json={"series": [asked], "horizon": 2})
    assert (answer.status_code, answer.json()["error"]["where"]) == (422, where), answer.text


def test_a_covariate_called_number_keeps_its_name_in_a_place(tens: Client) -> None:
    asked = grid(covariates={"number": [1, 2, "x"]})
    answer = tens.post("/v1/forecast", json={"series": [asked], "horizon": 2})
    assert answer.json()["error"]["where"] == "series.0.covariates.number.2"


def test_numbers_are_no_stamps_of_a_model_of_moments(client: Client) -> None:
    for item, code in ((grid(), "frequency_mismatch"), (stamped(1, 2, 3), "frequency_mismatch")):
        answer = client.post("/v1/forecast", json={"series": [item], "horizon": 2})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)


def test_the_model_of_numbered_steps_is_described(slot_folder: Path, make_client: MakeClient) -> None:
    predictor = Predictor(learned())
    publish_stub(slot_folder)
    answer = make_client(load=lambda folder: predictor).get("/v1/model").json()
    assert (answer["freq"], answer["season"], answer["cutoff"]) == ("10", 4, "990")


def test_a_slot_warms_a_model_of_numbered_steps_up(slot_folder: Path) -> None:
    publish_stub(slot_folder, freq="10")
    slot = Slot(slot_folder, load=load_stub, reload_s=0.01)
    slot.check()
    assert slot.current is not None


def learned() -> Forecaster:
    spec = Spec(name="tens", context=8, horizon=4, season=4, network=NetworkSpec(hidden=4))
    return Forecaster(spec, "10", 4, 990, PLAIN, regressor.build(spec, seed=0, season=4))


def test_the_answer_is_that_of_the_library(slot_folder: Path, make_client: MakeClient) -> None:
    predictor, y = Predictor(learned()), [float(value) for value in 10 + np.sin(np.arange(12))]
    publish_stub(slot_folder)
    client = make_client(load=lambda folder: predictor)
    asked = grid(start=1000, y=y), stamped(*range(1000, 1120, 10), y=y)
    wanted = predictor.forecast(Series("a", 1000, "10", np.array(y)), 4)
    for found in ask(client, *asked, horizon=4):
        np.testing.assert_allclose(found["mean"], wanted.mean, rtol=1e-6)
        assert found["ds"] == list(wanted.ds) == [1120, 1130, 1140, 1150]
