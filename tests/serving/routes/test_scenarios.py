"""POST /v1/scenarios: one history read once, forked; each scenario is answered as a request of its own would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.prediction.predictor import Predictor
from tests.factories import make_spec
from tests.forecaster.prediction.test_carry import COLUMNS, ENCODING, history, learned
from tests.serving.conftest import Client, LastValue, MakeClient, StubForecaster, publish_stub, series
from tests.serving.formats.test_state_token import asked
from tests.serving.routes.test_openapi import faults, schema_of

STEPS, HORIZON = 60, 5
SKY = ["rain", "sun", "hail", "rain", "rain"]
SCENARIOS: list[dict[str, Any]] = [
    {"name": "as planned", "covariates": {}},
    {"name": "no promotion", "covariates": {"promo": [0.0] * HORIZON}},
    {"name": "a wet week", "covariates": {"sky": ["rain"] * HORIZON, "promo": [9.0] * HORIZON}},
]


@pytest.fixture
def serve(slot_folder: Path, make_client: MakeClient) -> Callable[..., Client]:
    """Serves a network that reads covariates."""

    def start(**fields: Any) -> Client:
        publish_stub(slot_folder)
        forecaster = learned(encoding=ENCODING, **COLUMNS, **fields)
        if fields.get("members"):
            forecaster = replace(forecaster, others=(learned(encoding=ENCODING, **COLUMNS, **fields).network,) * 2)
            forecaster.others[0].output.bias.data.add_(0.5)
        return make_client(load=lambda _: Predictor(forecaster))

    return start


def post(client: Client, item: dict[str, Any], scenarios: Any = SCENARIOS, **ask: Any) -> Any:
    content = {"series": item, "scenarios": scenarios, "horizon": HORIZON, **ask}
    return client.post("/v1/scenarios", json=content)


def alone(client: Client, item: dict[str, Any], scenario: dict[str, Any], **ask: Any) -> Any:
    """The forecast of a scenario asked for in the usual way."""
    given = {
        name: values[:STEPS] + scenario["covariates"].get(name, values[STEPS:])
        for name, values in item["covariates"].items()
    }
    content = {"series": [{**item, "covariates": given}], "horizon": HORIZON, **ask}
    return client.post("/v1/forecast", json=content).json()["forecasts"][0]


@pytest.mark.parametrize(
    "fields",
    [
        {"head": {"kind": "gaussian"}},
        {"head": {"kind": "gaussian"}, "members": 3},
        {"head": {"kind": "gaussian"}, "reads": "history", "decoder": "direct"},
        {"head": {"kind": "student_t"}, "segment": 4},
    ],
)
def test_every_scenario_is_answered_as_a_request_of_its_own(
    serve: Callable[..., Client], fields: dict[str, Any]
) -> None:
    client, item, ask = serve(**fields), asked(history(), until=STEPS), {"levels": [0.1, 0.9], "samples": 7, "seed": 3}
    found = post(client, item, **ask).json()["scenarios"]
    for one, scenario in zip(found, SCENARIOS, strict=True):
        expected = alone(client, item, scenario, **ask)
        assert (one["name"], one["ds"], one["warnings"]) == (scenario["name"], expected["ds"], expected["warnings"])
        np.testing.assert_allclose(one["mean"], expected["mean"], rtol=1e-5)
        np.testing.assert_allclose(one["samples"], expected["samples"], rtol=1e-5)
        np.testing.assert_allclose(one["quantiles"]["0.9"], expected["quantiles"]["0.9"], rtol=1e-5)
    means = [np.array(one["mean"]) for one in found]
    assert not np.allclose(means[0], means[1])
    assert "difference" not in found[0]
    np.testing.assert_allclose(found[2]["difference"], means[2] - means[0], atol=1e-12)


def test_noise_is_common_to_all_scenarios(serve: Callable[..., Client]) -> None:
    client, item = serve(head={"kind": "gaussian"}), asked(history(), until=STEPS)
    twins = [SCENARIOS[1], {**SCENARIOS[1], "name": "again"}, SCENARIOS[2]]
    one, again, other = (
        np.array(each["samples"]) for each in post(client, item, twins, samples=50).json()["scenarios"]
    )
    np.testing.assert_array_equal(one, again)
    apart = (other - one)[:, 0]
    assert apart.std() < 0.5 * one[:, 0].std(), "noise of their own would make differences wider than either"
    assert abs(apart.mean()) > 0


def test_the_history_is_read_once(serve: Callable[..., Client]) -> None:
    client, rows = serve(), []
    assert client.slot.current is not None
    predictor: Any = client.slot.current.predictor
    predictor.network.recurrent.register_forward_pre_hook(lambda _, given: rows.append(tuple(given[0].shape[:2])))
    post(client, asked(history(), until=STEPS))
    assert rows[0] == (1, 16), "one row, the context"
    assert set(rows[1:]) == {(3, 1)}, "and from there on a row for each scenario"


def test_scenarios_go_on_from_a_state(serve: Callable[..., Client]) -> None:
    client, whole = serve(), history()
    item = asked(whole, until=STEPS)
    expected = post(client, item, return_state=True).json()
    state = client.post(
        "/v1/forecast", json={"series": [asked(whole, until=50)], "horizon": 2, "return_state": True}
    ).json()
    state = state["forecasts"][0]["state"]
    for going_on in (
        asked(whole, since=50, until=STEPS, state=state),
        {
            "id": "a",
            "state": expected["state"],
            "y": [],
            "covariates": asked(whole, since=STEPS, until=STEPS)["covariates"],
        },
    ):
        found = post(client, going_on).json()["scenarios"]
        for one, other in zip(found, expected["scenarios"], strict=True):
            np.testing.assert_allclose(one["mean"], other["mean"], rtol=1e-5)
    full = {"promo": [1.0] * HORIZON, "sky": SKY}
    bare = {"id": "a", "state": expected["state"], "y": []}
    assert post(client, bare, [{"name": "x", "covariates": full}]).status_code == 200


def test_a_bad_scenario_never_spoils_its_neighbours(serve: Callable[..., Client]) -> None:
    client, item = serve(), asked(history(), until=STEPS)
    bad = [
        {"name": "short", "covariates": {"promo": [1.0]}},
        {"name": "unknown", "covariates": {"heat": [1.0] * HORIZON}},
        {"name": "kind", "covariates": {"promo": ["x"] * HORIZON}},
        {"name": "size", "covariates": {"promo": [1e200] * HORIZON}},
        {"name": "empty", "covariates": {"promo": []}},
    ]
    found = post(client, item, [*bad[:2], SCENARIOS[1], *bad[2:]]).json()["scenarios"]
    assert [one["error"]["code"] if "error" in one else None for one in found] == [
        "covariate_unknown",
        "covariate_unknown",
        None,
        "not_a_number",
        "value_out_of_range",
        None,
    ]
    assert "difference" not in found[2], "the first has no forecast"
    np.testing.assert_allclose(found[2]["mean"], alone(client, item, SCENARIOS[1])["mean"], rtol=1e-5)
    answer = post(client, item, bad[:1])
    assert (answer.status_code, answer.json()["error"]["where"]) == (422, "short")


def test_covariates_that_end_with_the_history_are_enough_where_scenarios_say_the_rest(
    serve: Callable[..., Client],
) -> None:
    client, item = serve(), asked(history(), until=STEPS)
    short = {**item, "covariates": {name: values[:STEPS] for name, values in item["covariates"].items()}}
    full = {"name": "full", "covariates": {"promo": [1.0] * HORIZON, "sky": SKY}}
    found = post(client, short, [full, SCENARIOS[1]]).json()["scenarios"]
    np.testing.assert_allclose(found[0]["mean"], alone(client, item, full)["mean"], rtol=1e-5)
    assert found[1]["error"]["code"] == "covariate_unknown"
    assert "'sky'" in found[1]["error"]["message"]


def test_a_model_without_covariates_has_no_scenarios(client: Client) -> None:
    answer = post(client, series(), [{"name": "x", "covariates": {}}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "covariate_unknown")


@pytest.mark.parametrize(
    ("content", "status", "code", "where"),
    [
        ({"scenarios": []}, 422, "invalid_request", "scenarios"),
        ({"scenarios": [SCENARIOS[1]] * 2}, 422, "invalid_request", "body"),
        ({"scenarios": [{"name": "a"}]}, 422, "invalid_request", "scenarios.0.covariates"),
        (
            {"scenarios": [{"name": "a", "covariates": {"promo": [1, None]}}]},
            422,
            "invalid_request",
            "scenarios.0.covariates.promo.1",
        ),
        ({"series": series(y=[1, "2"])}, 422, "invalid_request", "series.y.1"),
        ({"series": series(start=None)}, 422, "invalid_request", "series.start"),
        ({"series": [series()]}, 422, "invalid_request", "series"),
        ({"series": series(y=[])}, 422, "history_too_short", "a"),
        ({"series": {"id": "a", "state": "x", "y": []}}, 422, "bad_state", "a"),
        ({"horizon": 0}, 422, "invalid_request", "horizon"),
        ({"horizon": 501}, 422, "horizon_out_of_range", "horizon"),
        ({"samples": 1000}, 422, "answer_too_large", "horizon"),
        ({"scenarios": [{"name": str(n), "covariates": {}} for n in range(9)]}, 422, "too_many_scenarios", "scenarios"),
        ({"scenarios": [{"name": "a", "covariates": {"promo": [1.0] * 6001}}]}, 422, "request_too_large", "scenarios"),
        ({"levels": [0.5, 0.5]}, 422, "invalid_request", "levels"),
        ({"more": 1}, 422, "invalid_request", "more"),
    ],
)
def test_what_cannot_be_answered_is_told_with_its_place(
    slot_folder: Path, make_client: MakeClient, content: Any, status: int, code: str, where: str
) -> None:
    client = stub(slot_folder, make_client)
    good = {"series": series(covariates={"promo": [1.0] * 8}), "scenarios": SCENARIOS[:2], "horizon": HORIZON}
    assert client.post("/v1/scenarios", json=good).status_code == 200
    answer = client.post("/v1/scenarios", json={**good, **content})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["where"]) == (status, code, where), error


def test_answers_are_as_documented(slot_folder: Path, make_client: MakeClient) -> None:
    client = stub(slot_folder, make_client)
    document = client.get("/docs.json").json()
    item = series(covariates={"promo": [1.0] * 8})
    for scenarios, status in (
        (SCENARIOS, 200),
        (SCENARIOS[:1], 200),
        ([{"name": "a", "covariates": {"promo": [1.0]}}], 422),
    ):
        content = {
            "series": item,
            "scenarios": scenarios,
            "horizon": 5,
            "samples": 2,
            "levels": [0.1],
            "return_state": True,
        }
        request = document["paths"]["/v1/scenarios"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert faults(content, request, document) == []
        answer = client.post("/v1/scenarios", json=content)
        assert answer.status_code == status
        assert faults(answer.json(), schema_of(document, "post", "/v1/scenarios", status), document) == []
        assert answer.headers["x-model"] == "stub/1"


def stub(slot_folder: Path, make_client: MakeClient) -> Client:
    publish_stub(slot_folder)
    spec = make_spec(covariates=["promo"], context=3, min_history=3)
    return make_client(
        load=lambda _: LastValue(StubForecaster(spec=spec)),
        max_scenarios=8, max_values=6000, max_answer=3000, max_horizon=500,
    )  # fmt: skip
