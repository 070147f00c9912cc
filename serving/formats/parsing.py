"""From bytes to fields to models; what does not fit is told with its place in the words of the request, never with its value."""

from __future__ import annotations

from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from serving.asgi.bodies import Body
from serving.errors import Problem
from serving.formats import chunked_json
from serving.formats.chunked_json import Parted

Model = TypeVar("Model", bound=BaseModel)
_IN_SERIES = ("series", 0)


def parse(body: Body) -> Parted:
    """JSON; raises Problem (400)."""
    try:
        return chunked_json.loads(bytes(body))
    except orjson.JSONDecodeError as error:
        raise Problem(
            "malformed_json", f"Expected JSON; {error.msg} at character {error.pos}. Correct the body."
        ) from error


def validated(kind: type[Model], fields: Parted) -> Model:
    """Some fields as a model, and the end of them; raises Problem (422) with the place of the first fault."""
    try:
        return kind.model_validate(fields.value)
    except ValidationError as error:
        raise invalid(error) from error
    finally:
        fields.let_go()


def invalid(error: ValidationError, *, of_series: bool = False) -> Problem:
    """The faults in one message, the place of the first apart; of a whole request, or of one series that stands alone."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    inside = _IN_SERIES if of_series else ()
    places = [_place((*inside, *fault["loc"])).removeprefix("series.0" if of_series else "") for fault in faults[:5]]
    places = [place.removeprefix(".") or "body" for place in places]
    told = "; ".join(f"{place}: {fault['msg']}" for place, fault in zip(places, faults, strict=False))
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    return Problem("invalid_request", f"The request is not valid. {told}{more}.", where=places[0])


def _place(loc: tuple[int | str, ...]) -> str:
    if loc[:1] == ("series",) and loc[1:] and isinstance(loc[1], str):
        return _place(("series", 0, *loc[1:])).replace("series.0", "series", 1)  # of one series, not of several
    # Tags of our unions are no part of the request.
    tags: dict[int, tuple[str, ...]] = {2: ("grid", "stamped", "carried"), 5: ("numbers", "texts")}
    if loc[:1] == ("columns",):
        tags = {2: ("number", "text"), 4: ("numbers", "texts")}
    if loc[:1] == ("scenarios",):
        tags = {4: ("numbers", "texts")}
    if loc[3:4] in (("start",), ("freq",), ("ds",)):
        tags[4] = ("number", "text")
    path = [str(part) for place, part in enumerate(loc) if part not in tags.get(place, ())]
    return ".".join(path)[:200] or "body"
