"""States: what a forecast still asks of a history, as signed text that a client keeps and sends back with new values.

    FORMAT, digest of the model, zlib(size of the head, head as JSON, arrays end to end), HMAC-SHA256 of all before

in base64 for addresses, without padding. Nothing is unpacked before the signature has been found good.
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
_HEADER_LENGTH_BYTES = 4  # bytes of the head's length
_MAX_EXPANSION = 8  # times the longest text: what a state may unpack to, in bytes
_RESEND_HINT = "Send the history again, and go on from the state that comes with its forecast."


class TokenSigner(NamedTuple):
    """What states are signed with.

    Attributes:
        keys: The first signs, all are known.
        most: Characters of the longest state.
    """

    keys: tuple[bytes, ...]
    max_length: int

    @classmethod
    def from_settings(cls, settings: Settings) -> TokenSigner:
        """That of a server, which was given a key when it was built; else one that nobody will know again."""
        keys = settings.with_state_key().state_keys
        return cls(tuple(key.encode() for key in keys.split(";")), settings.max_state)


class ModelReference(NamedTuple):
    """The model that a state belongs to: its digest, and how it reads columns of text."""

    digest: str
    encoding: Encoding


class _SummaryHeader(StrictModel):
    """A Past but its arrays; of each memory the place and, for every member, the shapes of its arrays by name."""

    last: float | None
    changes: tuple[float, float]
    counts: tuple[int, int]
    season: int = Field(ge=1)
    memories: list[tuple[int, list[dict[str, list[Annotated[int, Field(ge=0)]]]]]]


class _TokenHeader(StrictModel):
    """All of a state but its arrays, whose numbers follow in this order."""

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
    """The state of a history that was cut down. Raises StateTooLarge."""
    past = series.history_summary
    head = _TokenHeader(
        id=series.id,
        start=format_timestamp(series.start),
        freq=series.freq,
        style=(style.separator, style.unit, style.zone) if isinstance(style, TimestampStyle) else None,
        static=dict(series.static),
        steps=len(series),
        covariates=list(series.covariates),
        channels=list(series.channels),
        past=None if past is None else _build_summary_header(past),
    )
    arrays = [
        series.y,
        *(_encode_categories(name, values, model.encoding) for name, values in series.covariates.items()),
    ]
    arrays += series.channels.values()
    if past is not None:
        arrays += [
            past.last_season_values,
            *(one for each in past.rollout_states.values() for member in each for one in member.values()),
        ]
    told = head.model_dump_json().encode()
    body = b"".join(
        [len(told).to_bytes(_HEADER_LENGTH_BYTES, "big"), told, *(one.astype("<f8").tobytes() for one in arrays)]
    )
    signed = TOKEN_FORMAT + bytes.fromhex(model.digest) + zlib.compress(body, 6)
    text = base64.urlsafe_b64encode(signed + _compute_mac(signer.keys[0], signed)).rstrip(b"=").decode()
    if len(text) > signer.max_length or len(body) > _MAX_EXPANSION * signer.max_length:
        raise StateTooLarge(
            f"Expected a state of at most {signer.max_length} characters; that of series {series.id!r} has {len(text)}. Ask without "
            "return_state, and send the history each time.",
            where=series.id,
        )
    return text


def parse_token_series(
    series_input: ContinuedSeries, *, model: ModelReference, signer: TokenSigner, horizon: int
) -> ParsedSeries:
    """The history that a state stands for, and the new values behind it; raises the InputError that stands in its way."""
    held, style = _open_token(series_input.state, where=series_input.id, model=model, signer=signer)
    if held.id != series_input.id:
        raise BadState(
            f"Expected the state of series {series_input.id!r}; found that of another series. Send the one that came with it.",
            where=series_input.id,
        )
    _validate_static(held, series_input)
    held, style = _align_timestamps(held, style, series_input)
    y = np.array(series_input.y, dtype=np.float64)
    timestamps.validate_range(
        held.start, parse_frequency(held.freq), len(held) + len(y) + horizon, where=series_input.id
    )
    columns = parse_covariates(
        series_input.covariates, steps=max(len(y), 1), encoding=model.encoding, where=series_input.id
    )
    channels = parse_channels(series_input.channels, steps=len(y), where=series_input.id)
    if not len(y):  # nothing new: what is held is all there is
        channels = dict.fromkeys(held.channels, y)
        columns = columns or dict.fromkeys(held.covariates, y)
    whole = Series(
        held.id,
        held.start,
        held.freq,
        np.concatenate([held.y, y]),
        {name: np.concatenate([before, columns[name]]) for name, before in held.covariates.items() if name in columns},
        held.static,
        {name: np.concatenate([before, channels[name]]) for name, before in held.channels.items() if name in channels},
        held.history_summary,
    )
    return ParsedSeries(whole, style)


def _open_token(token: str, *, where: str, model: ModelReference, signer: TokenSigner) -> ParsedSeries:
    """What `issue_token` wrote; raises BadState for anything else, StateOfOtherModel for what it wrote of another."""
    raw = _decode_base64(token, max_length=signer.max_length)
    signed, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    good = False
    for key in signer.keys:  # all of them, in constant time: the delay tells nothing
        good |= hmac.compare_digest(_compute_mac(key, signed), mac)
    if not good:
        raise BadState(
            f"Expected a state of series {where!r} as this server gave it; found one that was altered, cut off, or signed with a "
            f"key that is known no more. {_RESEND_HINT}",
            where=where,
        )
    if not signed.startswith(TOKEN_FORMAT):
        raise BadState(f"The state of series {where!r} has a form of another time. {_RESEND_HINT}", where=where)
    digest, packed = signed[len(TOKEN_FORMAT) :][:_DIGEST_BYTES], signed[len(TOKEN_FORMAT) + _DIGEST_BYTES :]
    if digest.hex() != model.digest:
        raise StateOfOtherModel(
            f"The state of series {where!r} was left by the model {digest.hex()[:12]}; the one in use is {model.digest[:12]}. "
            f"{_RESEND_HINT}",
            where=where,
        )
    try:
        return _decode_payload(packed, encoding=model.encoding, max_bytes=_MAX_EXPANSION * signer.max_length)
    except (zlib.error, ValidationError, ValueError, IndexError, KeyError) as error:
        raise BadState(
            f"The state of series {where!r} holds what cannot be used. {_RESEND_HINT}", where=where
        ) from error


def _decode_base64(text: str, *, max_length: int) -> bytes:
    """The bytes of a text; none where it is too long, or there is another text for them."""
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
    """The series of a body that was signed; raises ValueError, or what it is made of raises, where it is not sound."""
    unzip = zlib.decompressobj()
    body = unzip.decompress(compressed, max_bytes)
    if not unzip.eof or unzip.unused_data:
        raise ValueError("longer than any state")
    size = int.from_bytes(body[:_HEADER_LENGTH_BYTES], "big")
    head = _TokenHeader.model_validate_json(body[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + size])
    numbers = _FloatReader(np.frombuffer(body[_HEADER_LENGTH_BYTES + size :], dtype="<f8").astype(np.float64))
    y, covariates = numbers.take(head.steps), [numbers.take(head.steps) for _ in head.covariates]
    channels = [numbers.take(head.steps) for _ in head.channels]
    past = None if head.past is None else _read_summary(head.past, numbers, steps=head.steps)
    if numbers.remaining or not np.isfinite(covariates).all() or any(map(_has_out_of_range, [y, *channels])):
        raise ValueError("numbers that cannot be reckoned with, or more than it says")
    series = Series(
        head.id,
        parse_timestamp(head.start, freq=head.freq),
        head.freq,
        y,
        {
            name: _decode_categories(name, column, encoding)
            for name, column in zip(head.covariates, covariates, strict=True)
        },
        head.static,
        dict(zip(head.channels, channels, strict=True)),
        past,
    )
    return ParsedSeries(series, IntegerStyle() if head.style is None else TimestampStyle(*head.style))


class _FloatReader:
    """Numbers end to end, of which the next ones are taken; raises ValueError where there are no more."""

    def __init__(self, numbers: Float64[np.ndarray, "number"]) -> None:
        self._values = numbers
        self._position = 0

    @property
    def remaining(self) -> int:
        """How many are left."""
        return len(self._values) - self._position

    def take(self, *shape: int) -> Float64[np.ndarray, "..."]:
        """The next ones in a shape."""
        count = math.prod(shape)
        if count > self.remaining:
            raise ValueError("fewer numbers than it says")
        self._position += count
        return self._values[self._position - count : self._position].reshape(shape)


def _build_summary_header(summary: HistorySummary) -> _SummaryHeader:
    shapes = [
        (place, [{name: list(one.shape) for name, one in member.items()} for member in each])
        for place, each in summary.rollout_states.items()
    ]
    return _SummaryHeader(
        last=None if np.isnan(summary.last_value) else summary.last_value,
        changes=summary.change_sums,
        counts=summary.change_counts,
        season=summary.season,
        memories=shapes,
    )


def _read_summary(header: _SummaryHeader, numbers: _FloatReader, *, steps: int) -> HistorySummary:
    """The inverse of `_build_summary_header`; raises ValueError where its numbers are not sound."""
    latest, memories = numbers.take(header.season), {}
    for place, members in header.memories:
        memories[place] = [
            {name: numbers.take(*shape).astype(STATE_ARRAY_DTYPES[name]) for name, shape in member.items()}
            for member in members
        ]
    arrays = [one for each in memories.values() for member in each for one in member.values()]
    sound = all(np.isfinite(one).all() for one in arrays) and all(0 <= place <= steps for place in memories)
    if _has_out_of_range(latest) or min(*header.changes, *header.counts) < 0 or not sound:
        raise ValueError("numbers that cannot be reckoned with")
    return HistorySummary(
        latest, float("nan") if header.last is None else header.last, header.changes, header.counts, memories
    )


def _has_out_of_range(values: Float64[np.ndarray, "..."]) -> bool:
    return bool((np.abs(values) > MAX_ABS_VALUE).any())


def _encode_categories(name: str, values: np.ndarray, encoding: Encoding) -> np.ndarray:
    """A covariate as numbers: texts by their place among those that the model knows, -1 for any other."""
    if values.dtype != object:
        return values
    known = {text: float(place) for place, text in enumerate(encoding.categories.get(name, ()))}
    return np.array([known.get(text, -1.0) for text in values.tolist()])


def _decode_categories(name: str, codes: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The inverse of `_encode_categories`; what the model does not know is a text that it does not know."""
    if name not in encoding.categories:
        return codes
    known = encoding.categories[name]
    unknown = "?" * (1 + max(map(len, known), default=0))
    return np.array([*known, unknown], dtype=object)[codes.astype(np.int64)]


def _validate_static(stored: Series, series_input: ContinuedSeries) -> None:
    for name, value in series_input.static.items():
        if stored.static.get(name, value) != value:
            raise StaticChanges(
                f"Series {series_input.id!r} had {name!r}: {stored.static[name]!r} when its state was made; found {value!r}. "
                "Send what it had, or nothing, or its whole history.",
                where=series_input.id,
            )


def _align_timestamps(
    stored: Series, style: TimestampStyle | IntegerStyle, series_input: ContinuedSeries
) -> ParsedSeries:
    """The held steps in the zone and style of the new stamps, which must follow; as they were where none were sent."""
    where = series_input.id
    if series_input.freq is not None and timestamps.parse_step(series_input.freq, where=where) != parse_frequency(
        stored.freq
    ):
        raise FrequencyMismatch(
            f"Series {where!r} has the frequency {stored.freq!r} in its state, and {str(series_input.freq)!r} is said. Leave it out.",
            where=where,
        )
    told: Sequence[str | int] = (
        series_input.ds if series_input.ds is not None else [] if series_input.start is None else [series_input.start]
    )
    if series_input.ds is not None and (series_input.start is not None or len(series_input.ds) != len(series_input.y)):
        raise BadStamp(
            f"Expected `start`, or one stamp in `ds` for each value, or neither; series {where!r} has {len(series_input.ds)} stamps for "
            f"{len(series_input.y)} values{'' if series_input.start is None else ', and a start'}. Correct it.",
            where=where,
        )
    if not told:
        return ParsedSeries(stored, style)
    read, style = timestamps.parse_timestamps(told, where=where)
    start: Any = stored.start
    first: Any = timestamp_at(read, 0)
    if _timestamp_kind(first) != _timestamp_kind(start):
        raise BadStamp(
            f"Expected stamps of the kind that the state of series {where!r} goes on from, {format_timestamp(stored.end)}; found "
            f"{format_timestamp(first)}. Write them alike, with or without an offset from UTC.",
            where=where,
        )
    moved = start.tz_convert(first.tz) if _timestamp_kind(start) == "zoned" else start
    one = Series(
        stored.id,
        moved,
        stored.freq,
        stored.y,
        stored.covariates,
        stored.static,
        stored.channels,
        stored.history_summary,
    )
    expected = one.future_timestamps(len(read))
    odd = np.asarray(expected != read)
    if odd.any():
        place = int(odd.argmax())
        raise IrregularStamps(
            f"Expected stamps that follow the state of series {where!r}, {format_timestamp(timestamp_at(expected, place))} at place {place}; found "
            f"{format_timestamp(timestamp_at(read, place))}. Send every step since, null where nothing was observed.",
            where=where,
        )
    return ParsedSeries(one, style)


def _timestamp_kind(timestamp: Timestamp) -> str:
    return "number" if isinstance(timestamp, int) else "plain" if timestamp.tz is None else "zoned"
