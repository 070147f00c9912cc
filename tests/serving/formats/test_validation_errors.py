"""A body with very many faults is rejected with its first ones: no validation builds an error for each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from serving.formats.schema import MAX_COLUMNS, ForecastRequest, RequestModel
from serving.routes.actuals import ActualsRequest
from serving.routes.backtest import BacktestRequest
from serving.routes.explain import ExplainRequest
from serving.routes.invocations import MAX_FRAME_COLUMNS, DeepArRequest, ScoringRequest
from serving.routes.scenarios import ScenariosRequest
from tests.serving.conftest import AppClient, MakeClient, publish_stub, series_payload

MODELS = [
    ForecastRequest,
    ScenariosRequest,
    BacktestRequest,
    ExplainRequest,
    ActualsRequest,
    DeepArRequest,
    ScoringRequest,
]
COUNT = 20_000
MAX_ERRORS = 20
NAMES = [f"x{number}" for number in range(COUNT)]
BODIES: dict[str, dict[str, Any]] = {
    "empty series": {"horizon": 1, "series": [{}] * COUNT},
    "numbers as series": {"horizon": 1, "series": [1] * COUNT},
    "text as values": {"horizon": 1, "series": [series_payload(y=["a"] * COUNT)]},
    "lists as values": {"horizon": 1, "series": [series_payload(y=[[]] * COUNT)]},
    "a series of text as values": {"horizon": 1, "series": series_payload(y=["a"] * COUNT), "scenarios": [{}]},
    "numbers among timestamps": {"horizon": 1, "series": [{"id": "a", "y": [1], "ds": ["2026-01-01", *[1] * COUNT]}]},
    "text among integer timestamps": {"horizon": 1, "series": [{"id": "a", "y": [1], "ds": [1, *["a"] * COUNT]}]},
    "text as levels": {"horizon": 1, "levels": ["a"] * COUNT, "series": []},
    "unknown fields": {"horizon": 1, "series": [], **dict.fromkeys(NAMES, 1)},
    "unknown fields of a series": {"horizon": 1, "series": [dict.fromkeys(NAMES, 1)]},
    "covariates": {"horizon": 1, "series": [series_payload(covariates=dict.fromkeys(NAMES, 1))]},
    "text among covariates": {"horizon": 1, "series": [series_payload(covariates={"a": [1, *["a"] * COUNT]})]},
    "numbers among text covariates": {"horizon": 1, "series": [series_payload(covariates={"a": ["a", *[1] * COUNT]})]},
    "channels": {"horizon": 1, "series": [series_payload(channels=dict.fromkeys(NAMES, 1))]},
    "static features": {"horizon": 1, "series": [series_payload(static=dict.fromkeys(NAMES, 1))]},
    "empty scenarios": {"horizon": 1, "series": series_payload(), "scenarios": [{}] * COUNT},
    "instances": {"instances": [{"target": 1}, *[{}] * COUNT]},
    "text as target": {"instances": [{"start": "2026-01-01", "target": ["a"] * COUNT}]},
    "features": {"instances": [{"start": "2026-01-01", "target": [1], "dynamic_feat": [1] * COUNT}]},
    "categories": {"instances": [{"start": "2026-01-01", "target": [1], "cat": ["a"] * COUNT}]},
    "quantiles": {"instances": [], "configuration": {"quantiles": ["a"] * COUNT}},
    "output types": {"instances": [], "configuration": {"output_types": ["a"] * COUNT}},
    "rows of a frame": {"dataframe_split": {"columns": [1] * COUNT, "data": [1] * COUNT, "index": [[]] * COUNT}},
    "cells of a frame": {"dataframe_split": {"columns": ["a"], "data": [[[]] * COUNT]}},
    "columns of a frame": {"inputs": {key: [[]] for key in NAMES}},
    "cells of a column": {"inputs": {"a": [[]] * COUNT}},
    "records": {"dataframe_records": [1] * COUNT},
    "fields of a record": {"dataframe_records": [{key: [] for key in NAMES}]},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_no_route_builds_more_than_a_few_errors(body: dict[str, Any]) -> None:
    counts = {model.__name__: _count_errors(model, body) for model in MODELS}
    assert sum(counts.values()) > 0
    assert max(counts.values()) <= MAX_ERRORS, counts


@pytest.mark.parametrize("make_body", [dict, lambda: {"horizon": 0, "series": [{"id": 1}], "one": 1, "two": 2}])
def test_a_few_errors_are_all_reported(make_body: Callable[[], dict[str, Any]]) -> None:
    assert _count_errors(ForecastRequest, make_body()) >= 2


def test_limits_of_names_are_stated_with_what_was_found(slot_folder: Any, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client()
    too_many = {key: [1.0] for key in NAMES[: MAX_COLUMNS + 1]}
    for field in ("covariates", "channels"):
        message = _post(client, {"horizon": 1, "series": [series_payload(**{field: too_many})]})
        assert f"series.0.{field}: " in message
        assert f"Expected at most {MAX_COLUMNS} columns; found {MAX_COLUMNS + 1}" in message
    message = _post(client, {"horizon": 1, "series": [], **dict.fromkeys(NAMES[:20], 1)})
    assert "Expected fields of this object; found 22, such as 'x0'" in message
    frame = {"inputs": {key: [1] for key in NAMES[: MAX_FRAME_COLUMNS + 1]}}
    response = client.post("/invocations", json=frame)
    assert response.status_code == 422
    assert f"Expected at most {MAX_FRAME_COLUMNS} columns; found {MAX_FRAME_COLUMNS + 1}" in response.text


def _post(client: AppClient, body: dict[str, Any]) -> str:
    response = client.post("/v1/forecast", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 422
    return str(response.json()["error"]["message"])


def _count_errors(model: type[RequestModel], body: dict[str, Any]) -> int:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    return 0
