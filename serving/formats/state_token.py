"""State tokens: the part of a history that later forecasts need, as signed text that the client stores and sends back.

A token is the URL-safe base64, without padding, of

    TOKEN_FORMAT, digest of the model, zlib(payload), HMAC-SHA256 of all before

The payload is decompressed only after the signature has been verified.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from forecaster.data.calendar import default_season
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
from forecaster.frequency.names import are_same_grid
from forecaster.frequency.timestamps import Timestamp, format_timestamp, parse_frequency, timestamp_at
from forecaster.series import Series
from forecaster.spec import Spec
from serving.deployment.slot import DeployedModel
from serving.formats import timestamps
from serving.formats.schema import ContinuedSeries
from serving.formats.series import (
    ParsedSeries,
    drop_columns,
    parse_channels,
    parse_covariates,
    parse_values,
    validate_column_names,
    validate_season,
)
from serving.formats.state_payload import decode_payload, encode_payload
from serving.formats.timestamps import IntegerStyle, TimestampStyle
from serving.settings import Settings

TOKEN_FORMAT = b"forecaster-state-1\n"
_DIGEST_BYTES, _MAC_BYTES = 32, hashlib.sha256().digest_size
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
    """The model that a token belongs to.

    Attributes:
        digest: The digest of its bundle.
        encoding: Its encoding of text covariates.
        spec: Its specification, with the columns it reads.
        season: Its season; None for the pretrained network, which takes that of each series.
        is_pretrained: Whether it is the pretrained network.
    """

    digest: str
    encoding: Encoding
    spec: Spec
    season: int | None = None
    is_pretrained: bool = False

    @classmethod
    def of(cls, model: DeployedModel) -> ModelReference:
        """Returns the reference of the model in use."""
        fitted_model = model.predictor.fitted_model
        season = None if model.is_pretrained else fitted_model.season
        return cls(model.release.digest, fitted_model.encoding, fitted_model.spec, season, model.is_pretrained)


def issue_token(
    series: Series,
    style: TimestampStyle | IntegerStyle,
    *,
    model: ModelReference,
    signer: TokenSigner,
    season: int | None = None,
) -> str:
    """Returns the token of a truncated history, whose request may have declared a season. Raises StateTooLarge."""
    payload = encode_payload(series, style, encoding=model.encoding, season=season)
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
    warnings: tuple[str, ...] = ()
    if model.is_pretrained:
        series_input, warnings = drop_columns(series_input)
    else:
        validate_column_names(series_input, model.spec)
    opened = _open_token(series_input.state, where=series_input.id, model=model, signer=signer)
    stored, style = opened.series, opened.style
    if stored.id != series_input.id:
        raise BadState(
            f"Expected the state of series {series_input.id!r}; found that of another series. "
            "Send the state returned for this id.",
            where=series_input.id,
        )
    _validate_static(stored, series_input)
    if series_input.season is not None:
        season = model.season or opened.season or default_season(stored.freq)
        validate_season(series_input.season, season, where=series_input.id)
    stored, style = _align_timestamps(stored, style, series_input)
    y = parse_values(series_input, model.spec)
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
    return ParsedSeries(series, style, opened.season, warnings)


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
        payload = _decompress(compressed, max_bytes=_MAX_EXPANSION * signer.max_length)
        return decode_payload(payload, encoding=model.encoding)
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


def _decompress(compressed: bytes, *, max_bytes: int) -> bytes:
    """Decompresses a payload; raises zlib.error, and ValueError if it is longer than `max_bytes` or data follow it."""
    decompressor = zlib.decompressobj()
    payload = decompressor.decompress(compressed, max_bytes)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("the payload is longer than any state")
    return payload


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
) -> tuple[Series, TimestampStyle | IntegerStyle]:
    """Returns the stored series in the time zone and style of the new timestamps; unchanged if none were sent.

    Raises IrregularStamps if the new timestamps do not follow the stored ones.
    """
    where = series_input.id
    freq, ds, start = series_input.freq, series_input.ds, series_input.start
    if freq is not None:
        timestamps.parse_step(freq, where=where)
    if freq is not None and not are_same_grid(str(freq), stored.freq, [stored.start]):
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
        return stored, style
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
    return aligned, style


def _timestamp_kind(timestamp: Timestamp) -> str:
    return "number" if isinstance(timestamp, int) else "plain" if timestamp.tz is None else "zoned"
