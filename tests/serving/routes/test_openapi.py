"""/docs.json and the other GET routes: requests and responses conform to the OpenAPI document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from serving.errors import ERROR_CODES
from serving.settings import Settings
from tests.serving.conftest import AppClient, MakeClient, load_stub_with_columns, publish_stub, series_payload

JSON_TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
JSON_TYPES |= {"integer": int, "number": (int, float)}


def schema_violations(value: Any, schema: dict[str, Any], document: dict[str, Any], location: str = "$") -> list[str]:
    """Returns the violations of a JSON schema by a value; supports the keywords that pydantic writes for our models."""
    supported = {
        "$ref",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "anyOf",
        "oneOf",
        "const",
        "enum",
    }
    supported |= {
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
    }
    supported |= {
        "uniqueItems",
        "pattern",
        "maxProperties",
        "propertyNames",
        "title",
        "description",
        "default",
        "examples",
    }
    assert set(schema) <= supported, f"{location}: keywords {set(schema) - supported} are not supported"
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return schema_violations(value, document["components"]["schemas"][name], document, location)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            matches = [option for option in schema[keyword] if not schema_violations(value, option, document, location)]
            is_valid = len(matches) == 1 if keyword == "oneOf" else bool(matches)
            if not is_valid:
                return [f"{location}: {len(matches)} of {keyword} match"]
    json_type = schema.get("type")
    if json_type and (
        not isinstance(value, JSON_TYPES[json_type]) or (isinstance(value, bool) and json_type != "boolean")
    ):
        return [f"{location}: {value!r} is not of type {json_type}"]
    violations: list[str] = []
    if "const" in schema and value != schema["const"]:
        violations.append(f"{location}: {value!r}")
    if value not in schema.get("enum", [value]):
        violations.append(f"{location}: {value!r} is none of {schema['enum']}")
    if json_type in ("integer", "number"):
        exclusive_minimum, exclusive_maximum = (
            schema.get("exclusiveMinimum", float("-inf")),
            schema.get("exclusiveMaximum", float("inf")),
        )
        if value < schema.get("minimum", value) or not exclusive_minimum < value < exclusive_maximum:
            violations.append(f"{location}: {value} is out of range")
    if json_type in ("string", "array"):
        min_length = schema.get("minLength", schema.get("minItems", 0))
        if not min_length <= len(value) <= schema.get("maxLength", schema.get("maxItems", len(value))):
            violations.append(f"{location}: length {len(value)}")
    if json_type == "string" and not re.search(schema.get("pattern", "").replace("$", r"\Z"), value):
        violations.append(f"{location}: {value!r} does not match")
    if json_type == "array":
        if schema.get("uniqueItems") and len(set(value)) != len(value):
            violations.append(f"{location}: duplicate items")
        for index, item in enumerate(value):
            violations += schema_violations(item, schema.get("items", {}), document, f"{location}.{index}")
    if json_type == "object":
        if len(value) > schema.get("maxProperties", len(value)):
            violations.append(f"{location}: {len(value)} properties")
        properties, additional = schema.get("properties", {}), schema.get("additionalProperties", {})
        violations += [f"{location}: {name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            violations += schema_violations(
                name, {"type": "string", **schema.get("propertyNames", {})}, document, f"{location}.{name}"
            )
            if name in properties:
                violations += schema_violations(item, properties[name], document, f"{location}.{name}")
            elif additional is False:
                violations.append(f"{location}: {name} is unknown")
            elif isinstance(additional, dict):
                violations += schema_violations(item, additional, document, f"{location}.{name}")
    return violations


def response_schema(document: dict[str, Any], method: str, path: str, status: int) -> dict[str, Any]:
    responses = document["paths"][path][method.lower()]["responses"]
    schema: dict[str, Any] = responses[str(status)]["content"]["application/json"]["schema"]
    return schema


GOOD_REQUEST = {"series": [series_payload(), series_payload(id="b", y=[1.0])], "horizon": 2}
TIMESTAMPS_REQUEST = {
    "series": [{"id": "a", "ds": [f"2026-01-01T0{hour}:00" for hour in range(4)], "y": [1, 2, None, 4]}],
    "horizon": 30,
}
INTEGER_STEPS_REQUEST = {
    "series": [
        {"id": "a", "start": 17, "freq": 1, "y": [1, 2, None, 4]},
        {"id": "b", "start": -3, "freq": "1", "y": [1, 2, 3]},
        {"id": "c", "ds": [7, 8, 9], "y": [1, 2, 3]},
        {"id": "d", "ds": [7, 8, 9], "y": [1, 2, 3], "freq": 1},
        {"id": "e", "start": "2026-01-01", "freq": 1, "y": [1, 2, 3]},
    ],
    "horizon": 3,
}


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/forecast", GOOD_REQUEST, 200),
        ("POST", "/v1/forecast", TIMESTAMPS_REQUEST, 200),
        ("POST", "/v1/forecast", INTEGER_STEPS_REQUEST, 200),
        ("POST", "/v1/forecast", {**GOOD_REQUEST, "levels": [0.9, 0.1], "samples": 2}, 200),
        ("POST", "/v1/forecast", {"series": [series_payload(y=[])], "horizon": 2}, 422),
        ("POST", "/v1/forecast", {"series": [], "horizon": 2}, 422),
        ("POST", "/v1/forecast", {"series": [series_payload()], "horizon": 501}, 422),
        ("GET", "/v1/forecast", None, 405),
        ("GET", "/v1/model", None, 200),
        ("GET", "/livez", None, 200),
        ("GET", "/readyz", None, 200),
    ],
)
def test_responses_conform_to_the_openapi_document(
    client: AppClient, method: str, path: str, content: Any, status: int
) -> None:
    document = client.get("/docs.json").json()
    response = client.request(method, path, json=content)
    assert response.status_code == status, response.text
    documented = "post" if path == "/v1/forecast" else "get"
    assert schema_violations(response.json(), response_schema(document, documented, path, status), document) == []


@pytest.mark.parametrize("path", ["/v1/model", "/readyz"])
def test_the_response_without_a_model_conforms_to_the_openapi_document(make_client: MakeClient, path: str) -> None:
    client = make_client()
    document = client.get("/docs.json").json()
    response = client.get(path)
    assert response.status_code == 503
    assert schema_violations(response.json(), response_schema(document, "get", path, 503), document) == []


@pytest.mark.parametrize(
    ("content", "accepted"),
    [
        (GOOD_REQUEST, True),
        (TIMESTAMPS_REQUEST, True),
        (INTEGER_STEPS_REQUEST, True),
        ({"series": [series_payload(start=17.0), series_payload()], "horizon": 2}, False),
        ({"series": [series_payload(start=True), series_payload()], "horizon": 2}, False),
        ({"series": [series_payload(start=[17]), series_payload()], "horizon": 2}, False),
        ({"series": [series_payload(freq=1.0), series_payload()], "horizon": 2}, False),
        ({"series": [series_payload(freq=None), series_payload()], "horizon": 2}, False),
        ({"series": [{"id": "a", "ds": [1, "2"], "y": [1, 2]}, series_payload()], "horizon": 2}, False),
        ({"series": [{"id": "a", "ds": [1.0, 2.0], "y": [1, 2]}, series_payload()], "horizon": 2}, False),
        ({"series": [{"id": "a", "ds": ["1", 2], "y": [1, 2]}, series_payload()], "horizon": 2}, False),
        ({"series": [{"id": "a", "ds": [], "y": []}, series_payload()], "horizon": 2}, True),
        ({"series": [{"id": "a", "ds": [1, 2], "y": [1, 2], "freq": None}, series_payload()], "horizon": 2}, True),
        ({"series": [], "horizon": 2}, False),
        ({"series": [series_payload()], "horizon": 0}, False),
        ({"series": [series_payload()], "horizon": 1.5}, False),
        ({"series": [series_payload(y=["1"])], "horizon": 2}, False),
        ({"series": [series_payload(y=[True])], "horizon": 2}, False),
        ({"series": [series_payload(ds=["2026-01-01"])], "horizon": 2}, False),
        ({"series": [series_payload()], "horizon": 2, "levels": []}, True),
        ({"series": [series_payload()], "horizon": 2, "levels": [0.1, 0.5]}, True),
        ({"series": [series_payload()], "horizon": 2, "levels": [0.1, 0.1]}, False),
        ({"series": [series_payload()], "horizon": 2, "levels": [0]}, False),
        ({"series": [series_payload()], "horizon": 2, "levels": [1]}, False),
        ({"series": [series_payload()], "horizon": 2, "levels": [index / 101 for index in range(1, 101)]}, False),
        ({"series": [series_payload()], "horizon": 2, "samples": 3, "seed": 7}, True),
        ({"series": [series_payload()], "horizon": 2, "samples": -1}, False),
        ({"series": [series_payload()], "horizon": 2, "samples": 1.5}, False),
        ({"series": [series_payload()], "horizon": 2, "seed": -1}, False),
        ({"series": [series_payload()], "horizon": 2, "seed": 2**63}, False),
        ({"columns": {"id": ["a"], "start": ["2026-01-01"], "freq": "h", "y": [[1]]}, "horizon": 3}, False),
        ({"series": [series_payload(covariates={"a": [1, 2.5, 3, 4, 5]}, static={"b": ""})], "horizon": 2}, True),
        ({"series": [series_payload(covariates={"a": ["x"] * 5})], "horizon": 2}, True),
        ({"series": [series_payload(channels={"c": [1, None, 2.5]})], "horizon": 2}, True),
        ({"series": [series_payload(channels={"a": ["x", "x", "x"]})], "horizon": 2}, False),
        ({"series": [series_payload(channels={str(name): [1] * 3 for name in range(65)})], "horizon": 2}, False),
        ({"series": [series_payload(covariates={"a": ["x", 1, "x", "x", "x"]})], "horizon": 2}, False),
        ({"series": [series_payload(covariates={"": [1] * 5})], "horizon": 2}, False),
        ({"series": [series_payload(covariates={str(name): [1] * 5 for name in range(65)})], "horizon": 2}, False),
        ({"series": [series_payload(static={"b": 1})], "horizon": 2}, False),
        ({"series": [series_payload(static={"b" * 201: "x"})], "horizon": 2}, False),
        ({"series": [{"id": "a", "y": [1.0]}], "horizon": 2}, False),
        ({"series": [series_payload(id="Bär 7 \u00a0é")], "horizon": 2}, True),
        ({"series": [series_payload(id="a\x00b")], "horizon": 2}, False),
        ({"series": [series_payload(id="a\n")], "horizon": 2}, False),
        ({"series": [series_payload()], "horizon": 2, "deadline_ms": 60_000}, True),
        ({"series": [series_payload()], "horizon": 2, "deadline_ms": 0}, False),
        ({"series": [series_payload()], "horizon": 2, "deadline_ms": 2.5}, False),
        ({"series": [series_payload(symbols=None)], "horizon": 2, "temperature": 1, "probabilities": False}, True),
        ({"series": [series_payload(symbols=["a", "b", None])], "horizon": 2}, False),  # with `y` too
        ({"series": [series_payload(symbols=[""])], "horizon": 2}, False),
        ({"series": [series_payload()], "horizon": 2, "temperature": 0}, False),
    ],
)
def test_the_openapi_document_accepts_the_requests_that_the_server_accepts(
    slot_folder: Path, make_client: MakeClient, content: Any, accepted: bool
) -> None:
    publish_stub(slot_folder)
    client = make_client(load=load_stub_with_columns)
    document = client.get("/docs.json").json()
    schema = document["paths"]["/v1/forecast"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert (schema_violations(content, schema, document) == []) is accepted
    assert (client.post("/v1/forecast", json=content).status_code == 200) is accepted


def test_every_route_and_every_code_is_documented(client: AppClient) -> None:
    document = client.get("/docs.json").json()
    assert document["openapi"].startswith("3.1")
    paths = str(document["paths"])
    assert [code for code in ERROR_CODES if f"`{code}`" not in paths] == []
    for path, operations in document["paths"].items():
        for method in operations:
            response = client.request(method.upper(), path, json={} if method == "post" else None)
            assert response.status_code != 404 or response.json()["error"]["code"] == "ledger_off"


def test_the_deployed_model_is_described(client: AppClient) -> None:
    description = client.get("/v1/model").json()
    assert (description["freq"], description["season"], description["cutoff"]) == ("h", 24, "2026-01-01T00:00:00")
    assert (description["spec"]["context"], description["facts"]["scores"], description["min_history"]) == (
        3,
        {"mase": 1.0},
        3,
    )
    assert (description["card"], description["calibration"]) == ("# A stub\n", None)
    document = client.get("/docs.json").json()
    assert schema_violations(description, response_schema(document, "get", "/v1/model", 200), document) == []


def test_responses_with_integer_steps_conform_to_the_openapi_document(
    slot_folder: Path, make_client: MakeClient
) -> None:
    publish_stub(slot_folder, freq="1")
    client = make_client()
    document = client.get("/docs.json").json()
    response = client.post("/v1/forecast", json=INTEGER_STEPS_REQUEST)
    assert response.status_code == 200
    assert schema_violations(response.json(), response_schema(document, "post", "/v1/forecast", 200), document) == []
    assert [outcome.get("ds") for outcome in response.json()["forecasts"]] == [
        [21, 22, 23],
        [0, 1, 2],
        [10, 11, 12],
        [10, 11, 12],
        None,
    ]


def test_requests_are_counted_by_route_and_status_and_never_by_path(client: AppClient) -> None:
    client.post("/v1/forecast", json=GOOD_REQUEST)
    for number in range(20):
        client.get(f"/nowhere/{number}")
    text = client.get("/metrics").text
    assert 'forecaster_requests_total{route="/v1/forecast",status="200"} 1.0' in text
    assert 'forecaster_requests_total{route="other",status="404"} 20.0' in text
    assert 'forecaster_series_total{outcome="forecast"} 1.0' in text
    assert 'forecaster_series_total{outcome="refused"} 1.0' in text
    assert "nowhere" not in text


def test_settings_round_trip_through_the_environment(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {"FORECASTER_SERVING_PORT": "4000", "FORECASTER_SERVING_SLOT": str(tmp_path), "PATH": "/bin"}
    )
    assert (settings.port, settings.slot, str(settings.host)) == (4000, tmp_path, "127.0.0.1")
    assert Settings.from_environment(settings.to_environment()) == settings


@pytest.mark.parametrize("variable", ["PROT", "PORT", "HOST", "WORKERS"])
def test_an_invalid_setting_is_rejected(variable: str) -> None:
    with pytest.raises(ValueError, match=variable.lower()):
        Settings.from_environment({f"FORECASTER_SERVING_{variable}": "nonsense"})
