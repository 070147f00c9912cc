"""Fields of pydantic models, as rows of a table."""

from __future__ import annotations

import types
from collections.abc import Iterator
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    IPv4Address: "IPv4 address",
    IPv6Address: "IPv6 address",
}
_BOUNDS = {
    "ge": "at least",
    "gt": "above",
    "le": "at most",
    "lt": "below",
    "min_length": "length at least",
    "max_length": "length at most",
}


class Field(NamedTuple):
    """A field of a model.

    Attributes:
        name: Its name, with those of the fields around it: `network.hidden`.
        kind: What it holds, with bounds.
        default: The default as inline code; "required" if there is none.
        description: What it means.
    """

    name: str
    kind: str
    default: str
    description: str


def list_fields(model: type[BaseModel], *, prefix: str = "") -> Iterator[Field]:
    """Yields the fields of a model, and in place of a field that is a model, the fields of that one after it."""
    for name, info in model.model_fields.items():
        nested = (
            info.annotation if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel) else None
        )
        if nested is not None:
            yield Field(f"{prefix}{name}", "fields below", "", info.description or "")
            yield from list_fields(nested, prefix=f"{prefix}{name}.")
        else:
            yield Field(f"{prefix}{name}", describe_kind(info), describe_default(info), info.description or "")


def describe_default(info: FieldInfo) -> str:
    """Returns the default of a field as inline code."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    return f"`{_format_value(value)}`"


def _format_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(_format_value(item) for item in value)}]"
    if isinstance(value, Enum):
        return str(value.value)
    return '""' if value == "" else str(value)


def describe_kind(info: FieldInfo) -> str:
    """Describes what a field holds: its type, and the bounds of its numbers."""
    kind = describe_annotation(info.annotation)
    bounds = _describe_bounds(info.metadata)
    return f"{kind}, {bounds}" if bounds else kind


def describe_annotation(annotation: Any) -> str:
    """Describes a type: the choices of a literal, or words such as `integer`, with their bounds."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = _describe_bounds(list(members[1:]))
        return describe_annotation(members[0]) + (f" ({bounds})" if bounds else "")
    if origin is Literal:
        return ", ".join(f"`{_format_value(member)}`" for member in members)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if member is type(None) else describe_annotation(member) for member in members)
    if origin in (tuple, list):
        return f"list of {describe_annotation(members[0])}" if members else "list"
    if origin is dict:
        return f"mapping to {describe_annotation(members[1])}"
    if annotation is Any:
        return "any"
    return _TYPE_NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _describe_bounds(metadata: list[Any]) -> str:
    bounds = []
    for constraint in metadata:
        parts = getattr(constraint, "metadata", None) if isinstance(constraint, FieldInfo) else [constraint]
        for part in parts or []:
            bounds += [
                f"{word} {getattr(part, name)}"
                for name, word in _BOUNDS.items()
                if getattr(part, name, None) is not None
            ]
    return ", ".join(bounds)
