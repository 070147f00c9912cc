"""The reference of the HTTP service: every route, field and error, from the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from docs.generator.markdown import finish_sentence, render_page, render_table, to_anchor
from serving.routes.openapi import build_document

Schema = Mapping[str, Any]
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "minLength": "length at least",
    "maxLength": "length at most",
    "minItems": "items at least",
    "maxItems": "items at most",
}
_SUCCESS = "200"


def build_openapi_text() -> str:
    """Returns the OpenAPI document of the service as JSON with sorted keys: the same text whenever and wherever it is built."""
    return json.dumps(build_document(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def build_page() -> str:
    """Returns the page."""
    document = build_document()
    operations = [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = document["components"]["schemas"]
    overview = (
        (f"[`{method.upper()} {path}`](#{to_anchor(_title(method, path))})", finish_sentence(operation["summary"]))
        for method, path, operation in operations
    )
    common = set.intersection(*(set(operation["responses"]) for *_, operation in operations))
    errors = (
        (status, ", ".join(f"`{code}`" for code in list_codes(operations[0][2]["responses"][status])))
        for status in sorted(common - {_SUCCESS})
    )
    headers = operations[0][2]["responses"][_SUCCESS]["headers"]
    return render_page(
        "HTTP reference",
        "Every route of the service, its fields and its errors, from the OpenAPI document that a running service has at "
        "`/openapi.json` and shows at `/docs`, and that the site has as `openapi.json`, with sorted keys. "
        "[HTTP service](../http.md) is the guide; [Errors](errors.md) has all codes.",
        render_table(("route", "what it does"), overview),
        "## Response headers",
        render_table(("header", "meaning"), ((f"`{name}`", header["description"]) for name, header in headers.items())),
        "## Errors of every route",
        "[Errors](errors.md#codes-of-the-service) says what the codes mean. A route that computes also responds with the code of "
        "an [error class](errors.md#classes), with status 422.",
        render_table(("status", "codes"), errors),
        *(
            part
            for method, path, operation in operations
            for part in _render_operation(method, path, operation, common)
        ),
        "## Objects",
        *(part for name in sorted(schemas) for part in _render_schema(name, schemas[name], schemas)),
    )


def list_codes(response: Schema) -> list[str]:
    """Returns the error codes in the description of a response."""
    return re.findall(r"`(\w+)`: ", response["description"])


def _title(method: str, path: str) -> str:
    return f"{method.upper()} {path}"


def _render_operation(method: str, path: str, operation: Schema, common: Collection[str]) -> Iterator[str]:
    yield f"## {_title(method, path)}"
    yield finish_sentence(operation["summary"])
    yield operation.get("description", "")
    scopes = [scope for entry in operation.get("security", ()) for scopes in entry.values() for scope in scopes]
    yield f"Scope of the API key: `{scopes[0]}`." if scopes else "This route needs no API key."
    parameters = operation.get("parameters", ())
    yield render_table(
        ("query parameter", "meaning"),
        ((f"`{item['name']}`", finish_sentence(item["description"])) for item in parameters),
    )
    if "requestBody" in operation:
        yield "Request body:"
        yield _render_content(operation["requestBody"]["content"])
        yield from _render_examples(operation["requestBody"]["content"])
    yield "Response body:"
    yield _render_content(operation["responses"][_SUCCESS]["content"])
    own = {status: list_codes(response) for status, response in operation["responses"].items() if status not in common}
    listed = "; ".join(f"{status} {', '.join(f'`{code}`' for code in codes)}" for status, codes in own.items())
    yield "Errors: [those of every route](#errors-of-every-route)" + (f"; {listed}." if listed else ".")


def _render_content(content: Mapping[str, Schema]) -> str:
    lines = []
    for media_type, body in content.items():
        schema = body.get("schema", {})
        described = finish_sentence(schema.get("description", "")) or describe_type(schema)
        lines.append(f"- `{media_type}`" + (f": {described}" if described else ""))
    return "\n".join(lines)


def _render_examples(content: Mapping[str, Schema]) -> Iterator[str]:
    examples = content.get("application/json", {}).get("examples", {})
    for title, example in list(examples.items())[:1]:
        yield f"Example: {title[0].lower()}{title[1:]}."
        yield f"```json\n{json.dumps(example['value'])}\n```"


def _render_schema(name: str, schema: Schema, schemas: Mapping[str, Schema]) -> Iterator[str]:
    required = schema.get("required", ())
    rows = (
        (
            f"`{field}`",
            describe_type(details),
            "required" if field in required else _describe_default(details),
            describe_field(details, schemas),
        )
        for field, details in schema.get("properties", {}).items()
    )
    yield f"### {name}"
    yield finish_sentence(schema.get("description", ""))
    yield render_table(("field", "holds", "default", "meaning"), rows)


def describe_field(details: Schema, schemas: Mapping[str, Schema]) -> str:
    """Returns the description of a field: its own, else that of the object that it holds."""
    description = details.get("description", "")
    if not description and "$ref" in details:
        description = schemas[_reference_name(details)].get("description", "")
    return finish_sentence(description)


def _describe_default(details: Schema) -> str:
    return f"`{json.dumps(details['default'])}`" if "default" in details else ""


def describe_type(schema: Schema) -> str:
    """Describes what a field holds: a type with its bounds, or links to the objects."""
    if "$ref" in schema:
        name = _reference_name(schema)
        return f"[{name}](#{to_anchor(name)})"
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return " or ".join(dict.fromkeys(describe_type(option) for option in schema[keyword]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = str(schema.get("type", ""))
    kind = {"array": "list", "object": "mapping", "string": "text"}.get(kind, kind)
    bounds = ", ".join(f"{word} {schema[name]}" for name, word in _BOUNDS.items() if name in schema)
    if "items" in schema:
        kind = f"list of {describe_type(schema['items'])}"
    elif isinstance(schema.get("additionalProperties"), Mapping):
        kind = f"mapping to {describe_type(schema['additionalProperties'])}"
    return f"{kind} ({bounds})" if bounds else kind


def _reference_name(schema: Schema) -> str:
    return str(schema["$ref"]).rpartition("/")[2]
