"""From the bytes of a request to the bytes of its answer: plain, synchronous, and the same for the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

from forecaster.errors import ForecasterError, StateOfOtherModel
from serving import arrow, columnar, limits, packing, parsing, rows
from serving.columnar import ColumnsRequest
from serving.deadline import Deadline
from serving.lines import Lines
from serving.outcomes import Outcome, outcomes
from serving.problem import Problem
from serving.schema import Ask, AskedHistory, ForecastRequest
from serving.settings import Settings
from serving.slot import InUse
from serving.state import Seal


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


def answer(
    body: bytes, model: InUse | None, settings: Settings, deadline: Deadline, *, media_type: str, pack: bool = False
) -> Answered:
    """Answers `POST /v1/forecast`, in the form in which it was asked: rows or columns of JSON, or Arrow.

    Raises Problem if the request as a whole cannot be used (levels that the model cannot give are such), if no model is
    in use, if the deadline passes, if the only series of a request in JSON is refused (so a client that sends one
    series and looks at the status alone learns of it), or if every series came with a state of another model (409).
    """
    deadline.check()  # it may have waited for a thread
    began = perf_counter()
    ask, series = _read(body, media_type)
    limits.check(ask, series, settings)
    read = perf_counter()
    done = outcomes(series, ask, model, deadline.within(ask.deadline_ms), Seal.of(settings))
    assert model is not None, "no outcome without one"
    refused = [one.found for one in done if isinstance(one.found, ForecasterError)]
    if len(refused) == len(done) and all(isinstance(one, StateOfOtherModel) for one in refused):
        raise Problem.of(refused[0])
    if len(done) == 1 and refused and media_type != arrow.MEDIA_TYPE:
        raise Problem.of(refused[0])
    computed = perf_counter()
    whole = _write(model, done, ask, media_type)
    packed = pack and len(whole) >= packing.PACK_FROM
    whole = packing.pack(whole) if packed else whole
    seconds = {"read": read - began, "forecast": computed - read, "write": perf_counter() - computed}
    return Answered(whole, len(done) - len(refused), len(refused), seconds, packed)


def answer_lines(lines: Iterator[bytes]) -> bytes | None:
    """The next piece of a streamed answer; None after the last."""
    return next(lines, None)


def begin_lines(
    body: bytes, model: InUse | None, settings: Settings, deadline: Deadline
) -> tuple[Lines, Iterator[bytes], bytes]:
    """A streamed answer to a request of lines, and its first piece. Raises Problem as `answer` does."""
    deadline.check()
    lines = Lines(body, settings)
    pieces = lines.pieces(model, deadline)
    return lines, pieces, next(pieces)


def _read(body: bytes, media_type: str) -> tuple[Ask, Sequence[AskedHistory]]:
    if media_type == arrow.MEDIA_TYPE:
        return arrow.read(body)
    fields = parsing.parse(body)
    if isinstance(fields, dict) and "columns" in fields:
        asked = parsing.validated(ColumnsRequest, fields)
        return asked, asked.series()
    request = parsing.validated(ForecastRequest, fields)
    return request, request.series


def _write(model: InUse, done: Sequence[Outcome], ask: Ask, media_type: str) -> bytes:
    if media_type == arrow.MEDIA_TYPE:
        return arrow.write(model.name, done, ask)
    if isinstance(ask, ColumnsRequest):
        return columnar.write(model.name, done, ask)
    return rows.write(model.name, done)
