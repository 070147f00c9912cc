"""The formats of a forecast request and its response, by media type. All of them carry the same histories and options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from serving.asgi.bodies import Body
from serving.formats import arrow, json_rows
from serving.formats.outcome import SeriesOutcome
from serving.formats.schema import ForecastOptions, SeriesInput


class Format(NamedTuple):
    """How one media type is read and written.

    Attributes:
        media_type: The media type of request and response.
        decode: Returns the options and the histories of a body; raises ApiError (400, 415, 422).
        encode: Returns the body of a response.
        raises_single_error: Whether the error of the only series of a request is the error of the response.
    """

    media_type: str
    decode: Callable[[Body], tuple[ForecastOptions, Sequence[SeriesInput]]]
    encode: Callable[[dict[str, Any], Sequence[SeriesOutcome], ForecastOptions], bytes]
    raises_single_error: bool


JSON = Format("application/json", json_rows.decode_rows, json_rows.encode_rows, raises_single_error=True)
ARROW = Format(arrow.MEDIA_TYPE, arrow.decode_arrow, arrow.encode_arrow, raises_single_error=False)
FORMATS = {each.media_type: each for each in (JSON, ARROW)}
