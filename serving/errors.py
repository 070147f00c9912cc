"""One shape for every failure, {"error": {"code", "message", "where"}}, and all codes that are not the forecaster's."""

from __future__ import annotations

from typing import Self

import orjson

from forecaster.errors import ForecasterError

# code: (HTTP status, when). The OpenAPI document is written from this table.
ERROR_CODES: dict[str, tuple[int, str]] = {
    "bad_path": (400, "The path has control characters."),
    "bad_length": (400, "The Content-Length header is not a number."),
    "malformed_json": (
        400,
        "The body is not JSON: broken syntax, NaN or Infinity, numbers beyond a double, or not UTF-8.",
    ),
    "unauthorized": (401, "There is no key, or none that this server knows."),
    "forbidden": (403, "The key is not for this path."),
    "malformed_encoding": (400, "The body is not what its Content-Encoding says."),
    "malformed_arrow": (
        400,
        "The body is no Arrow stream that can be read, or one with compressed or dictionary batches.",
    ),
    "not_found": (404, "There is no such path."),
    "ledger_off": (404, "This server keeps no ledger of served forecasts."),
    "method_not_allowed": (405, "The path does not take this method; the Allow header says which it takes."),
    "state_of_other_model": (
        409,
        "The states that series came with were left by another model. Send the histories again.",
    ),
    "body_too_large": (413, "The body is larger than this server takes."),
    "unsupported_media_type": (
        415,
        "The body is of a type, or compressed in a way, that this path or this server does not take.",
    ),
    "invalid_request": (422, "A field is missing, unknown, of the wrong type or out of range."),
    "too_many_series": (422, "More series than this server takes in one request."),
    "history_too_long": (422, "A history, or a covariate, is longer than this server takes."),
    "request_too_large": (422, "More values in all histories, covariates and channels than this server takes at once."),
    "answer_too_large": (
        422,
        "Series times horizon, times one and the numbers of levels and samples, is more than this server answers at once.",
    ),
    "too_many_scenarios": (422, "More scenarios than this server takes in one request."),
    "too_many_samples": (422, "More samples than this server draws."),
    "horizon_out_of_range": (422, "The horizon is above this server's limit."),
    "too_many_requests": (429, "Too many requests are under way; try again after Retry-After seconds."),
    "internal_error": (500, "A fault of the server. It is logged under the request id."),
    "ledger_unavailable": (503, "The database of the ledger does not answer."),
    "not_ready": (503, "No model is in use yet."),
    "deadline_passed": (504, "The forecast took longer than this server waits, or than `deadline_ms`."),
}

CLIENT_CLOSED_REQUEST = 499  # a status that is only logged: there is nobody to tell


class ApiError(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        code: One of CODES, or the code of a ForecasterError.
        where: The place in the request, as a dotted path ("series.0.y.3") or a series' id.
        headers: Sent along with the answer.
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
        """The 422 (409 for a state of another model) that a refused series becomes when it is all there was to answer."""
        status = ERROR_CODES.get(error.code, (422, ""))[0]
        return cls(error.code, error.message, where=error.where, status=status)

    def to_json(self) -> bytes:
        """The JSON that is sent."""
        return orjson.dumps({"error": {"code": self.code, "message": self.message, "where": self.where}})
