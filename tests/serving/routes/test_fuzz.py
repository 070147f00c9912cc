"""Valid and invalid requests generated from our OpenAPI document: no 5xx, documented responses only, no access without a key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.asgi import auth
from serving.deployment.slot import load_bundle
from serving.forecasting import ndjson
from serving.formats import arrow
from serving.routes import openapi
from tests.serving.conftest import AppClient, application_clients
from tests.serving.test_client import publish_random_model

pytestmark = pytest.mark.integration

EXAMPLE_COUNT = 12  # examples of each generation mode, for each operation
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
OPERATIONS = [(route.method.upper(), route.path) for route in openapi.ROUTES]
PROTECTED_OPERATIONS = [(route.method.upper(), route.path) for route in openapi.ROUTES if route.request_formats]


@schemathesis.serializer(ndjson.MEDIA_TYPE, arrow.MEDIA_TYPE)
def serialize_text(_: Any, value: Any) -> bytes:
    """Serialises the bodies that the document describes as text."""
    return value if isinstance(value, bytes) else str(value).encode()


class FuzzedApplication:
    """An application with a network and keys, and its document as a schemathesis schema."""

    def __init__(self, client: AppClient, key: str) -> None:
        self.client = client
        self.auth = {"x-api-key": key}
        document = client.get("/docs.json", headers=self.auth).json()
        self.schema = schemathesis.openapi.from_dict(document)

    def send(self, case: Any, **headers: str) -> httpx.Response:
        arguments = case.as_transport_kwargs(base_url="http://localhost")
        arguments["headers"] = {**(arguments.get("headers") or {}), **headers}
        arguments["content"] = arguments.pop("data", None)
        arguments["headers"].pop("Transfer-Encoding", None)
        url, method = arguments.pop("url"), arguments.pop("method")
        arguments.pop("cookies", None)
        response = self.client.request(method, httpx.URL(url).raw_path.decode(), **arguments)
        if response.status_code >= 500:  # only a deadline of a millisecond or so may be missed
            assert (response.status_code, "deadline_ms" in str(case.body)) == (504, True), response.text
        return response


@pytest.fixture(scope="module")
def fuzzed_application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzedApplication]:
    folder: Path = tmp_path_factory.mktemp("slot")
    publish_random_model(folder)
    key = auth.create_key("fuzz", ["admin"], folder / "keys")
    with application_clients(folder) as make:
        yield FuzzedApplication(make(load=load_bundle, keys_file=folder / "keys", ledger="on"), key)


def with_fuzz_settings(test: Any) -> Any:
    return settings(
        max_examples=EXAMPLE_COUNT,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(test)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_valid_requests_get_documented_responses(fuzzed_application: FuzzedApplication, method: str, path: str) -> None:
    @with_fuzz_settings
    @given(case=fuzzed_application.schema[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case: Any) -> None:
        response = fuzzed_application.send(case, **fuzzed_application.auth)
        case.validate_response(response, checks=CHECKS)
        if case.media_type in (None, "application/json"):  # arbitrary text is never Arrow, and seldom NDJSON
            assert response.status_code in (200, 422, 504), (
                "422: rules that a schema cannot express, such as a history that is too short"
            )

    check()


@pytest.mark.parametrize(("method", "path"), PROTECTED_OPERATIONS)
def test_invalid_requests_get_documented_errors(fuzzed_application: FuzzedApplication, method: str, path: str) -> None:
    @with_fuzz_settings
    @given(case=fuzzed_application.schema[path][method].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def check(case: Any) -> None:
        case.validate_response(fuzzed_application.send(case, **fuzzed_application.auth), checks=CHECKS)

    check()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_only_public_routes_respond_without_a_key(
    fuzzed_application: FuzzedApplication, method: str, path: str
) -> None:
    is_open = next(route.scope is None for route in openapi.ROUTES if route.path == path)

    @with_fuzz_settings
    @given(case=fuzzed_application.schema[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case: Any) -> None:
        for headers in ({}, {"x-api-key": "fck_wrong"}, {"authorization": "Basic Zjpm"}):
            response = fuzzed_application.send(case, **headers)
            assert (response.status_code == 401) is not is_open
            case.validate_response(response, checks=CHECKS)

    check()
