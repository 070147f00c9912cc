"""From the bytes of a request to the bytes of its answer: plain, synchronous, and the same for the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

from forecaster.errors import ForecasterError, StateOfOtherModel
from serving.asgi import compression
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import InUse
from serving.errors import Problem
from serving.forecasting.ndjson import Lines
from serving.forecasting.outcomes import outcomes
from serving.formats import arrow, json_columns, json_rows, limits, parsing
from serving.formats.json_columns import ColumnsRequest
from serving.formats.outcome import Outcome
from serving.formats.schema import Ask, AskedHistory, ForecastRequest
from serving.formats.state_token import Seal
from serving.settings import Settings


class Answered(NamedTuple):
    """An answer and what it took.

    Attributes:
        body: As it is sent.
        forecast: Series that got a forecast.
        refused: Series that did not.
        seconds: By what they were spent on.
        packed: Whether the body is in gzip.
    """

    body: bytes
    forecast: int
    refused: int
    seconds: dict[str, float]
    packed: bool = False


class Asked(NamedTuple):
    """A request to be answered.

    Attributes:
        body: As it came.
        media_type: Of the body, and of the answer.
        model: In use when it came; None if there was none.
        deadline: Until when it is waited for.
        pack: Whether the answer may be in gzip.
    """

    body: Body
    media_type: str
    model: InUse | None
    deadline: Deadline
    pack: bool = False


class Read(NamedTuple):
    """A request that was read: what it asks, of which series, the seconds that took, and what states are signed with."""

    asked: Asked
    ask: Ask
    series: Sequence[AskedHistory]
    seconds: float
    seal: Seal


def answer(asked: Asked, settings: Settings) -> Answered:
    """Answers `POST /v1/forecast`, in the form in which it was asked: rows or columns of JSON, or Arrow.

    Raises Problem if the request as a whole cannot be used (levels that the model cannot give are such), if no model is
    in use, if the deadline passes, if the only series of a request in JSON is refused (so a client that sends one
    series and looks at the status alone learns of it), or if every series came with a state of another model (409).
    """
    return computed(read(asked, settings))


def read(asked: Asked, settings: Settings) -> Read:
    """A request, read and within its limits. Raises Problem as `answer` does."""
    asked.deadline.check()  # it may have waited for a thread
    began = perf_counter()
    ask, series = _read(asked.body, asked.media_type)
    limits.check(ask, series, settings)
    return Read(asked, ask, series, perf_counter() - began, Seal.of(settings))


def computed(one: Read) -> Answered:
    """Its answer. Raises Problem as `answer` does."""
    began, asked = perf_counter(), one.asked
    done = outcomes(one.series, one.ask, asked.model, asked.deadline.within(one.ask.deadline_ms), one.seal)
    return written(one, done, perf_counter() - began)


def written(one: Read, done: Sequence[Outcome], seconds: float) -> Answered:
    """The answer with these outcomes, which took so long. Raises Problem where there is one alone, and it is refused."""
    began, model, media_type = perf_counter(), one.asked.model, one.asked.media_type
    assert model is not None, "no outcome without one"
    refused = [each.found for each in done if isinstance(each.found, ForecasterError)]
    if len(refused) == len(done) and all(isinstance(each, StateOfOtherModel) for each in refused):
        raise Problem.of(refused[0])
    if len(done) == 1 and refused and media_type != arrow.MEDIA_TYPE:
        raise Problem.of(refused[0])
    whole = _write(model, done, one.ask, media_type)
    packed = one.asked.pack and len(whole) >= compression.PACK_FROM
    whole = compression.pack(whole) if packed else whole
    spent = {"read": one.seconds, "forecast": seconds, "write": perf_counter() - began}
    return Answered(whole, len(done) - len(refused), len(refused), spent, packed)


def answer_lines(lines: Iterator[bytes]) -> bytes | None:
    """The next piece of a streamed answer; None after the last."""
    return next(lines, None)


def begin_lines(
    body: Body, model: InUse | None, settings: Settings, deadline: Deadline
) -> tuple[Lines, Iterator[bytes], bytes]:
    """A streamed answer to a request of lines, and its first piece. Raises Problem as `answer` does."""
    deadline.check()
    lines = Lines(body, settings)
    pieces = lines.pieces(model, deadline)
    return lines, pieces, next(pieces)


def _read(body: Body, media_type: str) -> tuple[Ask, Sequence[AskedHistory]]:
    if media_type == arrow.MEDIA_TYPE:
        return arrow.read(bytes(body))
    fields = parsing.parse(body)
    if isinstance(fields.value, dict) and "columns" in fields.value:
        asked = parsing.validated(ColumnsRequest, fields)
        return asked, asked.series()
    request = parsing.validated(ForecastRequest, fields)
    return request, request.series


def _write(model: InUse, done: Sequence[Outcome], ask: Ask, media_type: str) -> bytes:
    if media_type == arrow.MEDIA_TYPE:
        return arrow.write(model.name, done, ask)
    if isinstance(ask, ColumnsRequest):
        return json_columns.write(model.name, done, ask)
    return json_rows.write(model.name, done)
