"""Error responses: their shape, {"error": {"code", "message", "where"}}, and all codes not defined in forecaster.errors."""

from __future__ import annotations

from typing import Self

import orjson

from forecaster.errors import ForecasterError

# code: (HTTP status, description). The OpenAPI document is generated from this table.
ERROR_CODES: dict[str, tuple[int, str]] = {
    "bad_path": (400, "The path contains control characters."),
    "malformed_http": (400, "The bytes on the connection are not a valid HTTP request."),
    "bad_length": (400, "The Content-Length header is not a number."),
    "malformed_json": (
        400,
        "The body is not valid JSON: wrong syntax, NaN or Infinity, numbers outside the range of a double, or not UTF-8.",
    ),
    "unauthorized": (401, "The API key is missing or unknown to this server."),
    "forbidden": (403, "The API key lacks the scope of this path."),
    "malformed_encoding": (400, "The body does not match its Content-Encoding."),
    "malformed_arrow": (
        400,
        "The body is not a readable Arrow stream, or it contains compressed or dictionary batches.",
    ),
    "not_found": (404, "The path does not exist."),
    "ledger_off": (404, "This server keeps no ledger of served forecasts."),
    "method_not_allowed": (405, "The path does not support this method; the Allow header lists the supported ones."),
    "state_of_other_model": (
        409,
        "The states of the series were issued by another model. Send the histories again.",
    ),
    "body_too_large": (413, "The body is larger than this server accepts."),
    "unsupported_media_type": (
        415,
        "This path or this server does not support the body's media type or compression.",
    ),
    "unknown_host": (421, "The Host header names no host of this server."),
    "invalid_request": (422, "A field is missing, unknown, of the wrong type or out of range."),
    "too_many_series": (422, "The request has more series than this server accepts."),
    "history_too_long": (422, "A history or a covariate is longer than this server accepts."),
    "request_too_large": (
        422,
        "All histories, covariates and channels together have more values than this server accepts in one request.",
    ),
    "answer_too_large": (
        422,
        "Series times horizon times (1 + levels + samples) is more than this server returns in one response.",
    ),
    "too_many_scenarios": (422, "The request has more scenarios than this server accepts."),
    "too_many_samples": (422, "The request asks for more samples than this server draws."),
    "horizon_out_of_range": (422, "The horizon is above this server's limit."),
    "head_too_large": (431, "The headers are larger or more than this server accepts."),
    "too_many_requests": (429, "Too many requests are in progress; retry after Retry-After seconds."),
    "internal_error": (500, "The server failed. The error is logged under the request id."),
    "missing_package": (501, "This server lacks an optional package that the request needs; the message names it."),
    "ledger_unavailable": (503, "The database of the ledger does not respond."),
    "not_ready": (503, "No model is deployed yet."),
    "deadline_passed": (504, "The forecast took longer than this server's timeout, or than `deadline_ms`."),
}

CLIENT_CLOSED_REQUEST = 499  # logged only; no client is left to receive it


class ApiError(Exception):
    """An error response to a request.

    Attributes:
        code: A key of ERROR_CODES, or the code of a ForecasterError.
        message: What was expected and found, and what to do.
        where: The location in the request, as a dotted path ("series.0.y.3") or a series' id.
        status: The HTTP status.
        headers: Additional response headers.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        where: str | None = None,
        status: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.where = where
        self.status = ERROR_CODES[code][0] if status is None else status
        self.headers = headers or {}

    @classmethod
    def from_forecaster_error(cls, error: ForecasterError) -> Self:
        """Returns the response to a request whose only result is this error: 422, or the status of its code in ERROR_CODES."""
        status = ERROR_CODES.get(error.code, (422, ""))[0]
        return cls(error.code, error.message, where=error.where, status=status)

    def to_json(self) -> bytes:
        """Returns the JSON body of the response."""
        return orjson.dumps({"error": {"code": self.code, "message": self.message, "where": self.where}})

    def to_line(self) -> str:
        """Returns the error as one line: its code, its message and its place."""
        return f"{self.code}: {self.message}" + (f" (where: {self.where})" if self.where else "")
