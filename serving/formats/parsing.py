"""From bytes to fields to models; what does not fit is told with its place in the words of the request, never with its value."""

from __future__ import annotations

from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from serving.asgi.bodies import Body
from serving.errors import ApiError
from serving.formats import chunked_json
from serving.formats.chunked_json import ParsedJson

ModelT = TypeVar("ModelT", bound=BaseModel)
_SERIES_PREFIX = ("series", 0)


def parse_json(body: Body) -> ParsedJson:
    """JSON; raises Problem (400)."""
    try:
        return chunked_json.loads(bytes(body))
    except orjson.JSONDecodeError as error:
        raise ApiError(
            "malformed_json", f"Expected JSON; {error.msg} at character {error.pos}. Correct the body."
        ) from error


def validate_fields(model_class: type[ModelT], parsed: ParsedJson) -> ModelT:
    """Some fields as a model, and the end of them; raises Problem (422) with the place of the first fault."""
    try:
        return model_class.model_validate(parsed.value)
    except ValidationError as error:
        raise validation_problem(error) from error
    finally:
        parsed.release()


def validation_problem(error: ValidationError, *, single_series: bool = False) -> ApiError:
    """The faults in one message, the place of the first apart; of a whole request, or of one series that stands alone."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    inside = _SERIES_PREFIX if single_series else ()
    places = [
        _format_location((*inside, *fault["loc"])).removeprefix("series.0" if single_series else "")
        for fault in faults[:5]
    ]
    places = [place.removeprefix(".") or "body" for place in places]
    told = "; ".join(f"{place}: {fault['msg']}" for place, fault in zip(places, faults, strict=False))
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    return ApiError("invalid_request", f"The request is not valid. {told}{more}.", where=places[0])


def _format_location(location: tuple[int | str, ...]) -> str:
    if location[:1] == ("series",) and location[1:] and isinstance(location[1], str):
        return _format_location(("series", 0, *location[1:])).replace(
            "series.0", "series", 1
        )  # of one series, not of several
    # Tags of our unions are no part of the request.
    tags: dict[int, tuple[str, ...]] = {2: ("grid", "stamped", "carried"), 5: ("numbers", "texts")}
    if location[:1] == ("columns",):
        tags = {2: ("number", "text"), 4: ("numbers", "texts")}
    if location[:1] == ("scenarios",):
        tags = {4: ("numbers", "texts")}
    if location[3:4] in (("start",), ("freq",), ("ds",)):
        tags[4] = ("number", "text")
    path = [str(part) for place, part in enumerate(location) if part not in tags.get(place, ())]
    return ".".join(path)[:200] or "body"
