"""Parses request bodies into pydantic models. Errors name the location in the request, never the rejected value."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from forecaster.errors import describe_field_error
from serving.asgi.bodies import Body
from serving.errors import ApiError

ModelT = TypeVar("ModelT", bound=BaseModel)
_SERIES_PREFIX = ("series", 0)
_MAX_REPORTED_ERRORS = 5


def parse_json(body: Body) -> Any:
    """Parses a body as JSON; raises ApiError (400)."""
    try:
        return orjson.loads(bytes(body))
    except orjson.JSONDecodeError as error:
        raise ApiError(
            "malformed_json", f"Expected JSON; found an error at character {error.pos}: {error.msg}. Correct the body."
        ) from error


def validate_fields(model_class: type[ModelT], fields: Any) -> ModelT:
    """Validates parsed JSON as a model; raises ApiError (422) with the first location."""
    try:
        return model_class.model_validate(fields)
    except ValidationError as error:
        raise validation_error(error, model_class) from error


def validation_error(error: ValidationError, model_class: type[BaseModel], *, single_series: bool = False) -> ApiError:
    """Converts a validation error to an ApiError (422).

    The message lists the first errors with their locations, and `where` is the first location.

    Args:
        error: The error of pydantic.
        model_class: The model of the whole request, whose fields are suggested for unknown ones.
        single_series: Whether a series was validated alone, as in a line of NDJSON, and not a whole request.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    prefix: tuple[str | int, ...] = _SERIES_PREFIX if single_series else ()
    locations = [
        _format_location((*prefix, *detail["loc"])).removeprefix("series.0" if single_series else "")
        for detail in details[:_MAX_REPORTED_ERRORS]
    ]
    locations = [location.removeprefix(".") or "body" for location in locations]
    reported = "; ".join(
        f"{location}: {describe_field_error(detail, model_class, prefix=prefix)}"
        for location, detail in zip(locations, details, strict=False)
    )
    omitted = len(details) - _MAX_REPORTED_ERRORS
    more = f"; and {omitted} more" if omitted > 0 else ""
    return ApiError("invalid_request", f"The request is not valid. {reported}{more}.", where=locations[0])


def _format_location(location: tuple[int | str, ...]) -> str:
    if location[:1] == ("series",) and location[1:] and isinstance(location[1], str):
        # The request has one series, not a list.
        return _format_location(("series", 0, *location[1:])).replace("series.0", "series", 1)
    # The tags of our unions, by their index in the location; they are not part of the request.
    tags: dict[int, tuple[str, ...]] = {2: ("grid", "timestamped", "continued"), 5: ("numbers", "texts")}
    if location[:1] == ("scenarios",):
        tags = {4: ("numbers", "texts")}
    if location[3:4] in (("start",), ("freq",), ("ds",)):
        tags[4] = ("number", "text")
    path = [str(part) for index, part in enumerate(location) if part not in tags.get(index, ())]
    return ".".join(path)[:200] or "body"
