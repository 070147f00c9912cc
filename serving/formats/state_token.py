"""State tokens: the part of a history that later forecasts need, as signed text that the client stores and sends back.

A token is the URL-safe base64, without padding, of

    TOKEN_FORMAT, digest of the model, zlib(length of the header, header as JSON, concatenated arrays), HMAC-SHA256 of all before

The payload is decompressed only after the signature has been verified.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import zlib
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, ValidationError

from forecaster.data.encoding import Encoding
from forecaster.errors import (
    BadStamp,
    BadState,
    FrequencyMismatch,
    IrregularStamps,
    StateOfOtherModel,
    StateTooLarge,
    StaticChanges,
)
from forecaster.frequency import Timestamp, format_timestamp, parse_frequency, parse_timestamp, timestamp_at
from forecaster.history_summary import STATE_ARRAY_DTYPES, HistorySummary
from forecaster.series import MAX_ABS_VALUE, Series
from forecaster.shapes import Float64
from serving.formats import timestamps
from serving.formats.schema import ContinuedSeries, StrictModel
from serving.formats.series import ParsedSeries, parse_channels, parse_covariates
from serving.formats.timestamps import IntegerStyle, TimestampStyle, Unit
from serving.settings import Settings

TOKEN_FORMAT = b"forecaster-state-1\n"
_DIGEST_BYTES, _MAC_BYTES = 32, hashlib.sha256().digest_size
_HEADER_LENGTH_BYTES = 4  # bytes of the field that holds the length of the header
_MAX_EXPANSION = 8  # largest payload in bytes, as a multiple of the longest token
_RESEND_HINT = "Send the history again, and continue from the state returned with its forecast."


class TokenSigner(NamedTuple):
    """The keys that sign and verify state tokens.

    Attributes:
        keys: The first key signs; all keys verify.
        max_length: Longest token in characters.
    """

    keys: tuple[bytes, ...]
    max_length: int

    @classmethod
    def from_settings(cls, settings: Settings) -> TokenSigner:
        """Returns the signer of a service; without keys in the settings, it has a random key that is not stored."""
        keys = settings.with_state_key().state_keys
        return cls(tuple(key.encode() for key in keys.split(";")), settings.max_state)


class ModelReference(NamedTuple):
    """The model that a token belongs to: its digest, and its encoding of text covariates."""

    digest: str
    encoding: Encoding


class _SummaryHeader(StrictModel):
    """A HistorySummary without its arrays.

    `memories` has, for each recurrent state, its step and, for every ensemble member, the shapes of its arrays by name.
    """

    last: float | None
    changes: tuple[float, float]
    counts: tuple[int, int]
    season: int = Field(ge=1)
    memories: list[tuple[int, list[dict[str, list[Annotated[int, Field(ge=0)]]]]]]


class _TokenHeader(StrictModel):
    """A token without its arrays, which follow in the order of these fields."""

    id: str
    start: str
    freq: str
    style: tuple[str, Unit, str] | None
    static: dict[str, str]
    steps: int = Field(ge=1)
    covariates: list[str]
    channels: list[str]
    past: _SummaryHeader | None


def issue_token(
    series: Series, style: TimestampStyle | IntegerStyle, *, model: ModelReference, signer: TokenSigner
) -> str:
    """Returns the token of a truncated history. Raises StateTooLarge."""
    summary = series.history_summary
    header = _TokenHeader(
        id=series.id,
        start=format_timestamp(series.start),
        freq=series.freq,
        style=(style.separator, style.unit, style.zone) if isinstance(style, TimestampStyle) else None,
        static=dict(series.static),
        steps=len(series),
        covariates=list(series.covariates),
        channels=list(series.channels),
        past=None if summary is None else _build_summary_header(summary),
    )
    arrays = [
        series.y,
        *(_encode_categories(name, values, model.encoding) for name, values in series.covariates.items()),
    ]
    arrays += series.channels.values()
    if summary is not None:
        arrays += [
            summary.last_season_values,
            *(array for members in summary.rollout_states.values() for member in members for array in member.values()),
        ]
    encoded_header = header.model_dump_json().encode()
    header_length = len(encoded_header).to_bytes(_HEADER_LENGTH_BYTES, "big")
    payload = b"".join([header_length, encoded_header, *(array.astype("<f8").tobytes() for array in arrays)])
    signed = TOKEN_FORMAT + bytes.fromhex(model.digest) + zlib.compress(payload, 6)
    token = base64.urlsafe_b64encode(signed + _compute_mac(signer.keys[0], signed)).rstrip(b"=").decode()
    if len(token) > signer.max_length or len(payload) > _MAX_EXPANSION * signer.max_length:
        raise StateTooLarge(
            f"Expected a state of at most {signer.max_length} characters; that of series {series.id!r} has {len(token)}. "
            "Send requests without return_state, and the history each time.",
            where=series.id,
        )
    return token


def parse_token_series(
    series_input: ContinuedSeries, *, model: ModelReference, signer: TokenSigner, horizon: int
) -> ParsedSeries:
    """Returns the series that a token and new values describe; raises InputError if they are not valid."""
    stored, style = _open_token(series_input.state, where=series_input.id, model=model, signer=signer)
    if stored.id != series_input.id:
        raise BadState(
            f"Expected the state of series {series_input.id!r}; found that of another series. "
            "Send the state returned for this id.",
            where=series_input.id,
        )
    _validate_static(stored, series_input)
    stored, style = _align_timestamps(stored, style, series_input)
    y = np.array(series_input.y, dtype=np.float64)
    timestamps.validate_range(
        stored.start, parse_frequency(stored.freq), len(stored) + len(y) + horizon, where=series_input.id
    )
    covariates = parse_covariates(
        series_input.covariates, steps=max(len(y), 1), encoding=model.encoding, where=series_input.id
    )
    channels = parse_channels(series_input.channels, steps=len(y), where=series_input.id)
    if not len(y):  # no new values: the series is the stored one
        channels = dict.fromkeys(stored.channels, y)
        covariates = covariates or dict.fromkeys(stored.covariates, y)
    series = Series(
        stored.id,
        stored.start,
        stored.freq,
        np.concatenate([stored.y, y]),
        {
            name: np.concatenate([values, covariates[name]])
            for name, values in stored.covariates.items()
            if name in covariates
        },
        stored.static,
        {
            name: np.concatenate([values, channels[name]])
            for name, values in stored.channels.items()
            if name in channels
        },
        stored.history_summary,
    )
    return ParsedSeries(series, style)


def _open_token(token: str, *, where: str, model: ModelReference, signer: TokenSigner) -> ParsedSeries:
    """Verifies and decodes a token; raises BadState if it is not valid, and StateOfOtherModel."""
    raw = _decode_base64(token, max_length=signer.max_length)
    signed, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    is_valid = False
    for key in signer.keys:  # every key, each in constant time, so that the delay reveals nothing
        is_valid |= hmac.compare_digest(_compute_mac(key, signed), mac)
    if not is_valid:
        raise BadState(
            f"Expected a state of series {where!r} as this service returned it; found one that was altered, truncated, or signed "
            f"with a key that is no longer valid. {_RESEND_HINT}",
            where=where,
        )
    if not signed.startswith(TOKEN_FORMAT):
        raise BadState(
            f"Expected a state in the current format; that of series {where!r} has the format of another version. {_RESEND_HINT}",
            where=where,
        )
    digest, compressed = signed[len(TOKEN_FORMAT) :][:_DIGEST_BYTES], signed[len(TOKEN_FORMAT) + _DIGEST_BYTES :]
    if digest.hex() != model.digest:
        raise StateOfOtherModel(
            f"Expected a state of the model in use, {model.digest[:12]}; that of series {where!r} belongs to the model "
            f"{digest.hex()[:12]}. {_RESEND_HINT}",
            where=where,
        )
    try:
        return _decode_payload(compressed, encoding=model.encoding, max_bytes=_MAX_EXPANSION * signer.max_length)
    except (zlib.error, ValidationError, ValueError, IndexError, KeyError) as error:
        raise BadState(
            f"Expected a valid state; that of series {where!r} has content that cannot be used. {_RESEND_HINT}",
            where=where,
        ) from error


def _decode_base64(text: str, *, max_length: int) -> bytes:
    """Returns the decoded bytes; empty if the text is too long, invalid, or not the canonical encoding."""
    try:
        raw = (
            base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            if len(text) <= max_length
            else b""
        )
    except (binascii.Error, ValueError):
        return b""
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=") == text.encode() else b""


def _compute_mac(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, signed, "sha256")


def _decode_payload(compressed: bytes, *, encoding: Encoding, max_bytes: int) -> ParsedSeries:
    """Decodes a payload whose signature was verified.

    Raises ValueError, or the error of zlib, pydantic or Series, if it is not valid.
    """
    decompressor = zlib.decompressobj()
    payload = decompressor.decompress(compressed, max_bytes)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("the payload is longer than any state")
    header_length = int.from_bytes(payload[:_HEADER_LENGTH_BYTES], "big")
    header_end = _HEADER_LENGTH_BYTES + header_length
    header = _TokenHeader.model_validate_json(payload[_HEADER_LENGTH_BYTES:header_end])
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
    return ParsedSeries(series, IntegerStyle() if header.style is None else TimestampStyle(*header.style))


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
    return HistorySummary(last_season_values, last_value, header.changes, header.counts, rollout_states)


def _has_out_of_range(values: Float64[np.ndarray, "..."]) -> bool:
    return bool((np.abs(values) > MAX_ABS_VALUE).any())


def _encode_categories(name: str, values: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Returns a covariate as numbers; text becomes its index in the model's categories, or -1 if it is not one of them."""
    if values.dtype != object:
        return values
    codes = {label: float(index) for index, label in enumerate(encoding.categories.get(name, ()))}
    return np.array([codes.get(label, -1.0) for label in values.tolist()])


def _decode_categories(name: str, codes: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Inverts `_encode_categories`; -1 becomes a label that is not in the model's categories."""
    if name not in encoding.categories:
        return codes
    labels = encoding.categories[name]
    unknown_label = "?" * (1 + max(map(len, labels), default=0))  # longer than any category
    return np.array([*labels, unknown_label], dtype=object)[codes.astype(np.int64)]


def _validate_static(stored: Series, series_input: ContinuedSeries) -> None:
    for name, value in series_input.static.items():
        if stored.static.get(name, value) != value:
            raise StaticChanges(
                f"Expected the static feature {name!r} of series {series_input.id!r} to be {stored.static[name]!r}, as in its "
                f"state; found {value!r}. Send that value, omit the feature, or send the whole history.",
                where=series_input.id,
            )


def _align_timestamps(
    stored: Series, style: TimestampStyle | IntegerStyle, series_input: ContinuedSeries
) -> ParsedSeries:
    """Returns the stored series in the time zone and style of the new timestamps; unchanged if none were sent.

    Raises IrregularStamps if the new timestamps do not follow the stored ones.
    """
    where = series_input.id
    freq, ds, start = series_input.freq, series_input.ds, series_input.start
    if freq is not None and timestamps.parse_step(freq, where=where) != parse_frequency(stored.freq):
        raise FrequencyMismatch(
            f"Expected the frequency {stored.freq!r} of the state of series {where!r}; found {str(freq)!r}. Omit `freq`.",
            where=where,
        )
    values: Sequence[str | int] = ds if ds is not None else [] if start is None else [start]
    if ds is not None and (start is not None or len(ds) != len(series_input.y)):
        raise BadStamp(
            f"Expected `start`, or one timestamp in `ds` for each value, or neither; series {where!r} has {len(ds)} timestamps "
            f"for {len(series_input.y)} values{'' if start is None else ', and a start'}. Correct it.",
            where=where,
        )
    if not values:
        return ParsedSeries(stored, style)
    index, style = timestamps.parse_timestamps(values, where=where)
    stored_start: Any = stored.start
    first: Any = timestamp_at(index, 0)
    if _timestamp_kind(first) != _timestamp_kind(stored_start):
        raise BadStamp(
            f"Expected timestamps of the same kind as the last one in the state of series {where!r}, "
            f"{format_timestamp(stored.end)}; found {format_timestamp(first)}. "
            "Write both as integers, both with an offset from UTC, or both without.",
            where=where,
        )
    aligned = Series(
        stored.id,
        stored_start.tz_convert(first.tz) if _timestamp_kind(stored_start) == "zoned" else stored_start,
        stored.freq,
        stored.y,
        stored.covariates,
        stored.static,
        stored.channels,
        stored.history_summary,
    )
    expected = aligned.future_timestamps(len(index))
    mismatches = np.asarray(expected != index)
    if mismatches.any():
        position = int(mismatches.argmax())
        raise IrregularStamps(
            f"Expected timestamps that follow the state of series {where!r}, "
            f"{format_timestamp(timestamp_at(expected, position))} at index {position}; found "
            f"{format_timestamp(timestamp_at(index, position))}. Send every step since, and null for missing values.",
            where=where,
        )
    return ParsedSeries(aligned, style)


def _timestamp_kind(timestamp: Timestamp) -> str:
    return "number" if isinstance(timestamp, int) else "plain" if timestamp.tz is None else "zoned"
