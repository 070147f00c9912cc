"""The payload of a state token: a truncated history as a JSON header followed by its arrays.

The length of the header (4 bytes, big-endian), the header as JSON, and the arrays as little-endian float64 in its order.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from forecaster.data.encoding import Encoding, find_category, is_text
from forecaster.frequency.timestamps import format_timestamp, parse_timestamp
from forecaster.series import MAX_ABS_VALUE, Series
from forecaster.series.history_summary import STATE_ARRAY_DTYPES, HistorySummary
from forecaster.shapes import Float64
from serving.formats.schema import StrictModel
from serving.formats.series import ParsedSeries
from serving.formats.timestamps import IntegerStyle, TimestampStyle, Unit

_HEADER_LENGTH_BYTES = 4  # bytes of the field that holds the length of the header


class _SummaryHeader(StrictModel):
    """A HistorySummary without its arrays.

    `memories` has, for each recurrent state, its step and, for every ensemble member, the shapes of its arrays by name.
    `extremes` are the lowest and the highest value, for models with bounds.
    """

    last: float | None
    changes: tuple[float, float]
    counts: tuple[int, int]
    season: int = Field(ge=1)
    memories: list[tuple[int, list[dict[str, list[Annotated[int, Field(ge=0)]]]]]]
    extremes: tuple[float, float] | None = None


class _PayloadHeader(StrictModel):
    """A series without its arrays, which follow in the order of these fields."""

    id: str
    start: str
    freq: str
    style: tuple[str, Unit, str] | None
    static: dict[str, str]
    steps: int = Field(ge=1)
    covariates: list[str]
    channels: list[str]
    past: _SummaryHeader | None
    declared_season: int | None = Field(default=None, ge=1)


def encode_payload(
    series: Series, style: TimestampStyle | IntegerStyle, *, encoding: Encoding, season: int | None = None
) -> bytes:
    """Returns a truncated history, the style of its timestamps and the season that its request declared as bytes."""
    summary = series.history_summary
    header = _PayloadHeader(
        id=series.id,
        start=format_timestamp(series.start),
        freq=series.freq,
        style=(style.separator, style.unit, style.zone) if isinstance(style, TimestampStyle) else None,
        static=dict(series.static),
        steps=len(series),
        covariates=list(series.covariates),
        channels=list(series.channels),
        past=None if summary is None else _build_summary_header(summary),
        declared_season=season,
    )
    arrays = [
        series.y,
        *(_encode_categories(name, values, encoding) for name, values in series.covariates.items()),
    ]
    arrays += series.channels.values()
    if summary is not None:
        arrays += [
            summary.last_season_values,
            *(array for members in summary.rollout_states.values() for member in members for array in member.values()),
        ]
    # Without a declared season and extremes the header is as before there were any, for older versions of the service.
    exclude: dict[str, Any] = {} if season is not None else {"declared_season": True}
    if header.past is not None and header.past.extremes is None:
        exclude["past"] = {"extremes": True}
    encoded_header = header.model_dump_json(exclude=exclude).encode()
    header_length = len(encoded_header).to_bytes(_HEADER_LENGTH_BYTES, "big")
    return b"".join([header_length, encoded_header, *(array.astype("<f8").tobytes() for array in arrays)])


def decode_payload(payload: bytes, *, encoding: Encoding) -> ParsedSeries:
    """Inverts `encode_payload`.

    Raises ValueError, or the error of pydantic or Series, if the payload is not valid.
    """
    header_length = int.from_bytes(payload[:_HEADER_LENGTH_BYTES], "big")
    header_end = _HEADER_LENGTH_BYTES + header_length
    header = _PayloadHeader.model_validate_json(payload[_HEADER_LENGTH_BYTES:header_end])
    reader = _FloatReader(np.frombuffer(payload[header_end:], dtype="<f8").astype(np.float64))
    y, covariates = reader.take(header.steps), [reader.take(header.steps) for _ in header.covariates]
    channels = [reader.take(header.steps) for _ in header.channels]
    summary = None if header.past is None else _read_summary(header.past, reader, steps=header.steps)
    if reader.remaining or not np.isfinite(covariates).all() or any(map(_has_out_of_range, [y, *channels])):
        raise ValueError("the payload has numbers out of range, or more numbers than its header declares")
    series = Series(
        header.id,
        parse_timestamp(header.start, freq=header.freq),
        header.freq,
        y,
        {
            name: _decode_categories(name, codes, encoding)
            for name, codes in zip(header.covariates, covariates, strict=True)
        },
        header.static,
        dict(zip(header.channels, channels, strict=True)),
        summary,
    )
    style = IntegerStyle() if header.style is None else TimestampStyle(*header.style)
    return ParsedSeries(series, style, header.declared_season)


class _FloatReader:
    """Reads arrays from concatenated numbers, in order; raises ValueError at the end of the numbers."""

    def __init__(self, numbers: Float64[np.ndarray, "number"]) -> None:
        self._values = numbers
        self._position = 0

    @property
    def remaining(self) -> int:
        """The count of numbers not yet read."""
        return len(self._values) - self._position

    def take(self, *shape: int) -> Float64[np.ndarray, "..."]:
        """Returns the next numbers as an array of the given shape."""
        count = math.prod(shape)
        if count > self.remaining:
            raise ValueError("the payload has fewer numbers than its header declares")
        self._position += count
        return self._values[self._position - count : self._position].reshape(shape)


def _build_summary_header(summary: HistorySummary) -> _SummaryHeader:
    shapes = [
        (step, [{name: list(array.shape) for name, array in member.items()} for member in members])
        for step, members in summary.rollout_states.items()
    ]
    return _SummaryHeader(
        last=None if np.isnan(summary.last_value) else summary.last_value,
        changes=summary.change_sums,
        counts=summary.change_counts,
        season=summary.season,
        memories=shapes,
        extremes=None if np.isnan(summary.lowest) else (summary.lowest, summary.highest),
    )


def _read_summary(header: _SummaryHeader, reader: _FloatReader, *, steps: int) -> HistorySummary:
    """Inverts `_build_summary_header`; raises ValueError if the numbers are not valid."""
    last_season_values, rollout_states = reader.take(header.season), {}
    for step, members in header.memories:
        rollout_states[step] = [
            {name: reader.take(*shape).astype(STATE_ARRAY_DTYPES[name]) for name, shape in member.items()}
            for member in members
        ]
    arrays = [array for members in rollout_states.values() for member in members for array in member.values()]
    is_valid = all(np.isfinite(array).all() for array in arrays) and all(0 <= step <= steps for step in rollout_states)
    if _has_out_of_range(last_season_values) or min(*header.changes, *header.counts) < 0 or not is_valid:
        raise ValueError("the summary of the history has numbers out of range")
    last_value = float("nan") if header.last is None else header.last
    lowest, highest = header.extremes or (float("nan"), float("nan"))
    return HistorySummary(
        last_season_values,
        last_value,
        header.changes,
        header.counts,
        rollout_states,
        lowest=lowest,
        highest=highest,
    )


def _has_out_of_range(values: Float64[np.ndarray, "..."]) -> bool:
    return bool((np.abs(values) > MAX_ABS_VALUE).any())


def _encode_categories(name: str, values: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Returns a covariate as numbers; text becomes its index in the model's categories, or -1 if it is not one of them."""
    if not is_text(values):
        return values
    categories = encoding.categories.get(name, ())
    return np.array([float(find_category(categories, label)) for label in values.tolist()])


def _decode_categories(name: str, codes: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Inverts `_encode_categories`; -1 becomes a label that is not in the model's categories."""
    if name not in encoding.categories:
        return codes
    labels = encoding.categories[name]
    unknown_label = "?" * (1 + max(map(len, labels), default=0))  # longer than any category
    return np.array([*labels, unknown_label], dtype=object)[codes.astype(np.int64)]
