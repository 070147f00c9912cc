"""POST /v1/scenarios: the history is read once, and each scenario gets the forecast that a separate request would get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forecaster.prediction.predictor import Predictor
from tests.factories import make_spec
from tests.forecaster.prediction.test_carry import COLUMNS, ENCODING, make_history, make_model
from tests.serving.conftest import AppClient, LastValuePredictor, MakeClient, StubModel, publish_stub, series_payload
from tests.serving.formats.test_state_token import series_request
from tests.serving.routes.test_openapi import response_schema, schema_violations

pytestmark = pytest.mark.integration

STEPS, HORIZON = 60, 5
SKY_VALUES = ["rain", "sun", "hail", "rain", "rain"]
SCENARIOS: list[dict[str, Any]] = [
    {"name": "as planned", "covariates": {}},
    {"name": "no promotion", "covariates": {"promo": [0.0] * HORIZON}},
    {"name": "a wet week", "covariates": {"sky": ["rain"] * HORIZON, "promo": [9.0] * HORIZON}},
]


@pytest.fixture
def serve_random_model(slot_folder: Path, make_client: MakeClient) -> Callable[..., AppClient]:
    """Serves a network with covariates and random weights."""

    def make(**fields: Any) -> AppClient:
        publish_stub(slot_folder)
        fitted_model = make_model(encoding=ENCODING, **COLUMNS, **fields)
        if fields.get("members"):
            fitted_model = replace(
                fitted_model, other_networks=(make_model(encoding=ENCODING, **COLUMNS, **fields).network,) * 2
            )
            fitted_model.other_networks[0].output.bias.data.add_(0.5)
        return make_client(load=lambda _: Predictor(fitted_model))

    return make


def post_scenarios(client: AppClient, item: dict[str, Any], scenarios: Any = SCENARIOS, **options: Any) -> Any:
    content = {"series": item, "scenarios": scenarios, "horizon": HORIZON, **options}
    return client.post("/v1/scenarios", json=content)


def forecast_alone(client: AppClient, item: dict[str, Any], scenario: dict[str, Any], **options: Any) -> Any:
    """Returns the forecast of a scenario from /v1/forecast."""
    covariates = {
        name: values[:STEPS] + scenario["covariates"].get(name, values[STEPS:])
        for name, values in item["covariates"].items()
    }
    content = {"series": [{**item, "covariates": covariates}], "horizon": HORIZON, **options}
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
def test_every_scenario_equals_a_separate_request(
    serve_random_model: Callable[..., AppClient], fields: dict[str, Any]
) -> None:
    client, item, options = (
        serve_random_model(**fields),
        series_request(make_history(), end=STEPS),
        {"levels": [0.1, 0.9], "samples": 7, "seed": 3},
    )
    outcomes = post_scenarios(client, item, **options).json()["scenarios"]
    for outcome, scenario in zip(outcomes, SCENARIOS, strict=True):
        expected = forecast_alone(client, item, scenario, **options)
        assert (outcome["name"], outcome["ds"], outcome["warnings"]) == (
            scenario["name"],
            expected["ds"],
            expected["warnings"],
        )
        np.testing.assert_allclose(outcome["mean"], expected["mean"], rtol=1e-5)
        np.testing.assert_allclose(outcome["samples"], expected["samples"], rtol=1e-5)
        np.testing.assert_allclose(outcome["quantiles"]["0.9"], expected["quantiles"]["0.9"], rtol=1e-5)
    means = [np.array(outcome["mean"]) for outcome in outcomes]
    assert not np.allclose(means[0], means[1])
    assert "difference" not in outcomes[0]
    np.testing.assert_allclose(outcomes[2]["difference"], means[2] - means[0], atol=1e-12)


def test_all_scenarios_share_their_noise(serve_random_model: Callable[..., AppClient]) -> None:
    client, item = serve_random_model(head={"kind": "gaussian"}), series_request(make_history(), end=STEPS)
    twins = [SCENARIOS[1], {**SCENARIOS[1], "name": "again"}, SCENARIOS[2]]
    first, duplicate, other = (
        np.array(outcome["samples"]) for outcome in post_scenarios(client, item, twins, samples=50).json()["scenarios"]
    )
    np.testing.assert_array_equal(first, duplicate)
    differences = (other - first)[:, 0]
    assert differences.std() < 0.5 * first[:, 0].std(), (
        "independent noise would make the differences vary more than the samples"
    )
    assert abs(differences.mean()) > 0


def test_the_history_is_read_once(serve_random_model: Callable[..., AppClient]) -> None:
    client, shapes = serve_random_model(), []
    assert client.slot.current is not None
    predictor: Any = client.slot.current.predictor
    predictor.network.recurrent.register_forward_pre_hook(
        lambda _, arguments: shapes.append(tuple(arguments[0].shape[:2]))
    )
    post_scenarios(client, series_request(make_history(), end=STEPS))
    assert shapes[0] == (1, 16), "one row, for the context"
    assert set(shapes[1:]) == {(3, 1)}, "then one row for each scenario"


def test_scenarios_resume_from_a_state_token(serve_random_model: Callable[..., AppClient]) -> None:
    client, full_series = serve_random_model(), make_history()
    item = series_request(full_series, end=STEPS)
    expected = post_scenarios(client, item, return_state=True).json()
    state = client.post(
        "/v1/forecast", json={"series": [series_request(full_series, end=50)], "horizon": 2, "return_state": True}
    ).json()
    state = state["forecasts"][0]["state"]
    for continued in (
        series_request(full_series, start=50, end=STEPS, state=state),
        {
            "id": "a",
            "state": expected["state"],
            "y": [],
            "covariates": series_request(full_series, start=STEPS, end=STEPS)["covariates"],
        },
    ):
        outcomes = post_scenarios(client, continued).json()["scenarios"]
        for outcome, expected_outcome in zip(outcomes, expected["scenarios"], strict=True):
            np.testing.assert_allclose(outcome["mean"], expected_outcome["mean"], rtol=1e-5)
    covariates = {"promo": [1.0] * HORIZON, "sky": SKY_VALUES}
    without_covariates = {"id": "a", "state": expected["state"], "y": []}
    assert post_scenarios(client, without_covariates, [{"name": "x", "covariates": covariates}]).status_code == 200


def test_a_bad_scenario_never_affects_its_neighbours(serve_random_model: Callable[..., AppClient]) -> None:
    client, item = serve_random_model(), series_request(make_history(), end=STEPS)
    bad = [
        {"name": "short", "covariates": {"promo": [1.0]}},
        {"name": "unknown", "covariates": {"heat": [1.0] * HORIZON}},
        {"name": "kind", "covariates": {"promo": ["x"] * HORIZON}},
        {"name": "size", "covariates": {"promo": [1e200] * HORIZON}},
        {"name": "empty", "covariates": {"promo": []}},
    ]
    outcomes = post_scenarios(client, item, [*bad[:2], SCENARIOS[1], *bad[2:]]).json()["scenarios"]
    assert [outcome["error"]["code"] if "error" in outcome else None for outcome in outcomes] == [
        "covariate_unknown",
        "covariate_unknown",
        None,
        "not_a_number",
        "value_out_of_range",
        None,
    ]
    assert "difference" not in outcomes[2], "the first has no forecast"
    np.testing.assert_allclose(outcomes[2]["mean"], forecast_alone(client, item, SCENARIOS[1])["mean"], rtol=1e-5)
    response = post_scenarios(client, item, bad[:1])
    assert (response.status_code, response.json()["error"]["where"]) == (422, "short")


def test_historical_covariates_suffice_if_scenarios_provide_the_future(
    serve_random_model: Callable[..., AppClient],
) -> None:
    client, item = serve_random_model(), series_request(make_history(), end=STEPS)
    item_without_future = {**item, "covariates": {name: values[:STEPS] for name, values in item["covariates"].items()}}
    full_scenario = {"name": "full", "covariates": {"promo": [1.0] * HORIZON, "sky": SKY_VALUES}}
    outcomes = post_scenarios(client, item_without_future, [full_scenario, SCENARIOS[1]]).json()["scenarios"]
    np.testing.assert_allclose(outcomes[0]["mean"], forecast_alone(client, item, full_scenario)["mean"], rtol=1e-5)
    assert outcomes[1]["error"]["code"] == "covariate_unknown"
    assert "'sky'" in outcomes[1]["error"]["message"]


def test_a_model_without_covariates_rejects_scenarios(client: AppClient) -> None:
    response = post_scenarios(client, series_payload(), [{"name": "x", "covariates": {}}])
    assert (response.status_code, response.json()["error"]["code"]) == (422, "covariate_unknown")


@pytest.mark.parametrize(
    ("content", "status", "code", "location"),
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
        ({"series": series_payload(y=[1, "2"])}, 422, "invalid_request", "series.y.1"),
        ({"series": series_payload(start=None)}, 422, "invalid_request", "series.start"),
        ({"series": [series_payload()]}, 422, "invalid_request", "series"),
        ({"series": series_payload(y=[])}, 422, "history_too_short", "a"),
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
def test_an_invalid_request_is_reported_with_its_location(
    slot_folder: Path, make_client: MakeClient, content: Any, status: int, code: str, location: str
) -> None:
    client = publish_stub_client(slot_folder, make_client)
    good = {"series": series_payload(covariates={"promo": [1.0] * 8}), "scenarios": SCENARIOS[:2], "horizon": HORIZON}
    assert client.post("/v1/scenarios", json=good).status_code == 200
    response = client.post("/v1/scenarios", json={**good, **content})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["where"]) == (status, code, location), error


def test_responses_conform_to_the_openapi_document(slot_folder: Path, make_client: MakeClient) -> None:
    client = publish_stub_client(slot_folder, make_client)
    document = client.get("/docs.json").json()
    item = series_payload(covariates={"promo": [1.0] * 8})
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
        request_schema = document["paths"]["/v1/scenarios"]["post"]["requestBody"]["content"]["application/json"][
            "schema"
        ]
        assert schema_violations(content, request_schema, document) == []
        response = client.post("/v1/scenarios", json=content)
        assert response.status_code == status
        assert (
            schema_violations(response.json(), response_schema(document, "post", "/v1/scenarios", status), document)
            == []
        )
        assert response.headers["x-model"] == "stub/1"


def publish_stub_client(slot_folder: Path, make_client: MakeClient) -> AppClient:
    publish_stub(slot_folder)
    spec = make_spec(covariates=["promo"], context=3, min_history=3)
    return make_client(
        load=lambda _: LastValuePredictor(StubModel(spec=spec)),
        max_scenarios=8, max_values=6000, max_answer=3000, max_horizon=500,
    )  # fmt: skip
