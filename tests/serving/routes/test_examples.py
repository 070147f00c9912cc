"""The examples in the OpenAPI document: the service accepts every request, and every response has the documented form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.forecasting import ndjson
from serving.routes.examples import NDJSON_REQUEST_EXAMPLE, PRETRAINED_TITLE, REQUEST_EXAMPLES
from serving.routes.openapi import JSON_MEDIA_TYPE, ROUTES, build_document
from tests.serving.conftest import AppClient, LastValuePredictor, MakeClient, load_stub, publish_stub
from tests.serving.routes.test_openapi import schema_violations

DOCUMENT = build_document()
REQUESTS = [(path, title) for path, examples in REQUEST_EXAMPLES.items() for title in examples]


def load_stub_with_promotions(folder: Path) -> LastValuePredictor:
    """Loads the stub as a model that reads the covariate `promo`."""
    predictor = load_stub(folder)
    model = predictor.fitted_model
    return replace(
        predictor, fitted_model=replace(model, spec=model.spec.model_copy(update={"covariates": ("promo",)}))
    )


@pytest.fixture
def monthly_client(slot_folder: Path, make_client: MakeClient) -> AppClient:
    publish_stub(slot_folder, freq="MS")
    return make_client(ledger="on")


def test_every_route_has_examples() -> None:
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.path][route.method]
        assert operation["responses"]["200"]["content"][route.response_formats[0].media_type]["example"], route.path
        if route.request_formats:
            assert operation["requestBody"]["content"][JSON_MEDIA_TYPE]["examples"], route.path
        for status, response in operation["responses"].items():
            content = response["content"].get(JSON_MEDIA_TYPE, {})
            if "schema" in content:
                assert schema_violations(content["example"], content["schema"], DOCUMENT) == [], (route.path, status)


@pytest.mark.parametrize(("path", "title"), REQUESTS, ids=lambda value: value)
def test_the_service_accepts_every_example(slot_folder: Path, make_client: MakeClient, path: str, title: str) -> None:
    publish_stub(slot_folder, freq="MS")
    load = load_stub_with_promotions if path == "/v1/scenarios" else load_stub
    client = make_client(ledger="on", load=load, pretrained=title.startswith(PRETRAINED_TITLE))
    example = REQUEST_EXAMPLES[path][title]
    schema = DOCUMENT["paths"][path]["post"]["requestBody"]["content"][JSON_MEDIA_TYPE]["schema"]
    assert schema_violations(example, schema, DOCUMENT) == []
    response = client.post(path, json=example)
    if path == "/v1/explain":  # the stub has no network to explain
        assert response.json()["error"]["code"] != "invalid_request"
        return
    assert response.status_code == 200, response.text
    outcomes: list[Any] = next((value for value in response.json().values() if isinstance(value, list)), [])
    assert outcomes
    assert not [outcome for outcome in outcomes if "error" in outcome]


def test_the_service_accepts_the_example_of_ndjson(monthly_client: AppClient) -> None:
    response = monthly_client.post(
        "/v1/forecast", content=NDJSON_REQUEST_EXAMPLE.encode(), headers={"content-type": ndjson.MEDIA_TYPE}
    )
    assert response.status_code == 200
    assert response.text.splitlines()[-1] == '{"forecast":1,"refused":0}'


def test_both_paths_of_the_document_have_the_same_content(monthly_client: AppClient) -> None:
    assert monthly_client.get("/openapi.json").content == monthly_client.get("/docs.json").content
