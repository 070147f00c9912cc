"""A server of the Model Context Protocol on standard input and output, `python -m serving.services.mcp_server`.

Its tools call the same functions as the routes of the service: decode, validate, limit, compute, encode. It opens no port and has
no keys: who starts it may use it. `mcp` (extra `mcp`) is imported by `build_server` only.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import Field, ValidationError

from forecaster import __version__
from forecaster.errors import ForecasterError
from forecaster.installation import require_package
from serving.deadline import Deadline
from serving.deployment.pretrained import PretrainedSlot
from serving.deployment.slot import Slot
from serving.errors import ApiError
from serving.forecasting.endpoint import ComputeJob, Endpoint
from serving.forecasting.forecast import FORECAST
from serving.forecasting.outcomes import require_model
from serving.formats.forecast_formats import JSON
from serving.formats.limits import validate_json_size
from serving.routes.explain import EXPLAIN
from serving.routes.model import describe_model
from serving.settings import Settings, describe_errors

if TYPE_CHECKING:
    from mcp.server import MCPServer

Fields = dict[str, Any]
HISTORY = (
    "`id` (text), `y` (numbers, null where missing, oldest first), `start` (ISO 8601, of the first value) and `freq` (a pandas "
    "alias such as h, D or MS), or `ds` (all timestamps) instead"
)
INSTRUCTIONS = "Forecasts time series, with intervals. `model` says which frequency and history the model needs."
_INTERRUPTED = 130  # the exit code after Ctrl-C


class ForecastTools:
    """Returns the fields of a route's response, or raises ApiError. At most `Settings.rollouts` calls compute at once."""

    def __init__(self, settings: Settings, slot: Slot) -> None:
        self._settings = settings.with_state_key()
        self._slot = slot
        self._free_rollouts = BoundedSemaphore(settings.rollouts)

    def forecast(
        self,
        series: Annotated[list[Fields], Field(description=f"the histories, each with {HISTORY}")],
        horizon: Annotated[int, Field(description="number of steps to forecast")],
        levels: Annotated[list[float], Field(description="levels of quantiles: [0.1, 0.9] bound 80 %")] = [],  # noqa: B006
    ) -> Fields:
        """Forecasts one or more series: `mean`, `quantiles` by level, timestamps and warnings of each, or its `error`."""
        return self._compute(FORECAST, {"series": series, "horizon": horizon, "levels": levels})

    def explain(
        self,
        series: Annotated[Fields, Field(description=f"one history, with {HISTORY}")],
        horizon: Annotated[int | None, Field(description="steps of the mean; the model's by default")] = None,
        steps: Annotated[int, Field(description="number of latest steps to explain")] = 64,
        faithfulness: Annotated[bool, Field(description="also compare with a random order; slower")] = False,
    ) -> Fields:
        """Explains the mean forecast of one series: the contribution of each past value, and the memory of the network."""
        optional = {} if horizon is None else {"horizon": horizon}
        return self._compute(EXPLAIN, {"series": series, "steps": steps, "faithfulness": faithfulness, **optional})

    def model(self) -> Fields:
        """Describes the model in use: frequency, season, smallest history, calibration, scores of its test, and its card."""
        description: Fields = orjson.loads(orjson.dumps(describe_model(require_model(self._slot.current))))
        return description

    def _compute(self, endpoint: Endpoint[Any], fields: Fields) -> Fields:
        model, deadline = require_model(self._slot.current), Deadline.after(self._settings.timeout_s)
        try:
            body = json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:  # such as NaN, which orjson would write as null
            raise ApiError("malformed_json", f"Expected JSON; {error}. Correct the arguments.") from error
        validate_json_size(len(body), self._settings)
        request = endpoint.decode(body, JSON.media_type, self._settings)
        deadline = deadline.capped(request.deadline_ms)
        if not self._free_rollouts.acquire(timeout=deadline.remaining_s):
            raise deadline.timeout_error()
        try:
            [outcome] = endpoint.respond([ComputeJob(request, model, deadline, self._settings)])
        finally:
            self._free_rollouts.release()
        if isinstance(outcome, Exception):
            raise outcome
        response: Fields = orjson.loads(outcome.body)
        return response


def build_server(tools: ForecastTools) -> MCPServer:
    """Returns the server of the tools. Raises MissingPackage if `mcp` is not installed."""
    require_package("mcp", purpose="a server of the Model Context Protocol")
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    def report_errors(tool: Callable[..., Fields]) -> Callable[..., Fields]:
        @wraps(tool)
        def call(*arguments: Any, **options: Any) -> Fields:
            try:
                return tool(*arguments, **options)
            except ApiError as error:
                raise ToolError(error.to_line()) from error

        return call

    server = MCPServer("forecaster", version=__version__, instructions=INSTRUCTIONS)
    for tool in (tools.forecast, tools.explain, tools.model):
        server.tool()(report_errors(tool))
    return server


def main() -> int:
    """Serves the model in the slot, or the pretrained network, until standard input ends; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)  # standard output belongs to the protocol
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))  # the thread that reads cannot be interrupted
    try:
        settings = Settings.from_environment(os.environ)
        slot = (PretrainedSlot if settings.pretrained else Slot)(settings.slot, reload_s=settings.reload_s)
        server = build_server(ForecastTools(settings, slot))
    except ValidationError as error:
        sys.stderr.writelines(f"forecaster: {line}\n" for line in describe_errors(error))
        return 2
    except ForecasterError as error:
        sys.stderr.write(f"forecaster: {error}\n")
        return error.exit_code
    slot.reload_if_changed()
    slot.start()  # loads each model that replaces this one in the slot
    server.run()
    slot.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
