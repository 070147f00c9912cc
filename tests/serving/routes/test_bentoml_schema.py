"""/schema.json: what BentoML's clients read in it."""

from __future__ import annotations

from serving.routes.openapi import ROUTES
from tests.serving.conftest import AppClient


def test_the_schema_has_an_endpoint_for_every_route_with_a_json_body(client: AppClient) -> None:
    schema = client.get("/schema.json").json()
    assert (schema["name"], schema["type"]) == ("forecaster", "service")
    assert {(route["name"], route["route"]) for route in schema["routes"]} == {
        (route.path.rpartition("/")[2], route.path) for route in ROUTES if route.method == "post"
    }
    by_name = {route["name"]: route for route in schema["routes"]}
    forecast = by_name["forecast"]["input"]
    assert {"series", "horizon", "levels", "samples"} <= set(forecast["properties"])
    assert sorted(forecast["required"]) == ["horizon", "series"]
    assert by_name["forecast"]["output"]["type"] == "object"
    assert by_name["invocations"]["input"]["root_input"] is True, "it accepts two requests with different fields"


def test_what_the_client_reads_of_every_property_is_there(client: AppClient) -> None:
    """BentoML's client looks for files among the properties: it reads `type`, and `items` of an array."""
    for route in client.get("/schema.json").json()["routes"]:
        assert isinstance(route["output"], dict)
        for name, property_schema in route["input"].get("properties", {}).items():
            if property_schema.get("type") == "array":
                assert isinstance(property_schema["items"], dict), name
