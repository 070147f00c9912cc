"""The form of lines (NDJSON), for many series: the first says what is asked, each further one is a series; so is the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from forecaster.errors import ForecasterError
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import InUse
from serving.errors import Problem
from serving.forecasting.outcomes import outcomes
from serving.formats import json_rows, limits, parsing
from serving.formats.outcome import Outcome
from serving.formats.schema import Ask, AskedHistory, Continued, ModelName, Strict
from serving.formats.state_token import Seal
from serving.settings import Settings

MEDIA_TYPE = "application/x-ndjson"
_AT_ONCE = 256  # lines that become a piece of the answer
_SERIES: TypeAdapter[AskedHistory] = TypeAdapter(Continued)


class LinesBegin(Strict):
    """The first line of an answer."""

    model: ModelName


class LinesEnd(Strict):
    """The last line of a whole answer; where it is missing, or is an error without an id, the answer is not whole."""

    forecast: int = Field(description="series that got a forecast")
    refused: int = Field(description="series that got an error")


class BadLine(ForecasterError):
    """A line that is no series: refused, as a bad series is, beside its good neighbours."""

    def __init__(self, problem: Problem, *, where: str) -> None:
        super().__init__(problem.message, where=where)
        self.code = problem.code  # type: ignore[misc]  # that of the whole request it would have been


class Lines:
    """A request of lines under way; what it remembers is how far it has come.

    Attributes:
        ask: What the first line asks.
        forecast: Series that got a forecast so far.
        refused: Series that got an error so far.
    """

    def __init__(self, body: Body, settings: Settings) -> None:
        """Raises Problem if the first line is none, or there are too many."""
        first, _, rest = bytes(body).partition(b"\n")
        self.ask = parsing.validated(Ask, parsing.parse(first))
        count = rest.count(b"\n") + (not rest.endswith(b"\n"))
        limits.check_ask(self.ask, min(_AT_ONCE, count), settings)
        if count > settings.max_lines:
            raise Problem(
                "too_many_series",
                f"Expected at most {settings.max_lines} lines. Send several requests.",
                where="series",
            )
        self._lines = enumerate(rest.split(b"\n"), 2)
        self._settings = settings
        self.forecast = self.refused = 0

    def pieces(self, model: InUse | None, deadline: Deadline) -> Iterator[bytes]:
        """The answer, some lines at a time; each is computed when it is asked for. Raises Problem as `outcomes` does."""
        deadline = deadline.within(self.ask.deadline_ms)
        piece = self._next(model, deadline)
        assert model is not None, "no outcome without one"
        yield orjson.dumps({"model": model.name}, option=orjson.OPT_APPEND_NEWLINE) + piece
        while piece:
            piece = self._next(model, deadline)
            yield piece
        end = {"forecast": self.forecast, "refused": self.refused}
        yield orjson.dumps(end, option=orjson.OPT_APPEND_NEWLINE)

    def _next(self, model: InUse | None, deadline: Deadline) -> bytes:
        deadline.check()
        read: list[AskedHistory | Outcome] = []
        for number, line in self._lines:
            if line.strip():
                read.append(self._series(line, number))
            if len(read) == _AT_ONCE:
                break
        good = [one for one in read if not isinstance(one, Outcome)]
        forecasts = iter(outcomes(good, self.ask, model, deadline, Seal.of(self._settings)))
        done = [one if isinstance(one, Outcome) else next(forecasts) for one in read]
        refused = sum(isinstance(one.found, ForecasterError) for one in done)
        self.refused += refused
        self.forecast += len(done) - refused
        return json_rows.write_lines(done)

    def _series(self, line: bytes, number: int) -> AskedHistory | Outcome:
        fields: Any = None
        try:
            told = parsing.parse(line)
            fields = told.value
            one = _SERIES.validate_python(fields)
            told.let_go()
            limits.check_histories([one], self._settings)
        except (Problem, ValidationError) as error:
            problem = parsing.invalid(error, of_series=True) if isinstance(error, ValidationError) else error
            name = fields.get("id") if isinstance(fields, dict) else None
            return Outcome(
                name[:200] if isinstance(name, str) else "",
                BadLine(problem, where=f"line.{number}.{problem.where or 'body'}".removesuffix(".body")),
            )
        return one
