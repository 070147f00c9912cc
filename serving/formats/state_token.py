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
from forecaster.frequency import Stamp, at, offset, tell, untell
from forecaster.history_summary import KINDS, Past
from forecaster.series import LARGEST_VALUE, Series
from forecaster.shapes import Float64
from serving.formats import timestamps
from serving.formats.schema import CarriedSeries, Strict
from serving.formats.series import ReadSeries, channels_of, columns_of
from serving.formats.timestamps import Numbers, Style, Unit
from serving.settings import Settings

FORMAT = b"forecaster-state-1\n"
_DIGEST, _MAC = 32, hashlib.sha256().digest_size
_SIZE = 4  # bytes of the head's length
_UNPACKED = 8  # times the longest text: what a state may unpack to, in bytes
_RESEND = "Send the history again, and go on from the state that comes with its forecast."


class Seal(NamedTuple):
    """What states are signed with.

    Attributes:
        keys: The first signs, all are known.
        most: Characters of the longest state.
    """

    keys: tuple[bytes, ...]
    most: int

    @classmethod
    def of(cls, settings: Settings) -> Seal:
        """That of a server, which was given a key when it was built; else one that nobody will know again."""
        keys = settings.with_state_key().state_keys
        return cls(tuple(key.encode() for key in keys.split(";")), settings.max_state)


class Model(NamedTuple):
    """The model that a state belongs to: its digest, and how it reads columns of text."""

    digest: str
    encoding: Encoding


class _Remembered(Strict):
    """A Past but its arrays; of each memory the place and, for every member, the shapes of its arrays by name."""

    last: float | None
    changes: tuple[float, float]
    counts: tuple[int, int]
    season: int = Field(ge=1)
    memories: list[tuple[int, list[dict[str, list[Annotated[int, Field(ge=0)]]]]]]


class _Head(Strict):
    """All of a state but its arrays, whose numbers follow in this order."""

    id: str
    start: str
    freq: str
    style: tuple[str, Unit, str] | None
    static: dict[str, str]
    steps: int = Field(ge=1)
    covariates: list[str]
    channels: list[str]
    past: _Remembered | None


def issue(carried: Series, style: Style | Numbers, *, model: Model, seal: Seal) -> str:
    """The state of a history that was cut down. Raises StateTooLarge."""
    past = carried.past
    head = _Head(
        id=carried.id,
        start=tell(carried.start),
        freq=carried.freq,
        style=(style.separator, style.unit, style.zone) if isinstance(style, Style) else None,
        static=dict(carried.static),
        steps=len(carried),
        covariates=list(carried.covariates),
        channels=list(carried.channels),
        past=None if past is None else _remembered(past),
    )
    arrays = [carried.y, *(_coded(name, values, model.encoding) for name, values in carried.covariates.items())]
    arrays += carried.channels.values()
    if past is not None:
        arrays += [past.latest, *(one for each in past.memories.values() for member in each for one in member.values())]
    told = head.model_dump_json().encode()
    body = b"".join([len(told).to_bytes(_SIZE, "big"), told, *(one.astype("<f8").tobytes() for one in arrays)])
    signed = FORMAT + bytes.fromhex(model.digest) + zlib.compress(body, 6)
    text = base64.urlsafe_b64encode(signed + _mac(seal.keys[0], signed)).rstrip(b"=").decode()
    if len(text) > seal.most or len(body) > _UNPACKED * seal.most:
        raise StateTooLarge(
            f"Expected a state of at most {seal.most} characters; that of series {carried.id!r} has {len(text)}. Ask without "
            "return_state, and send the history each time.",
            where=carried.id,
        )
    return text


def to_series(asked: CarriedSeries, *, model: Model, seal: Seal, horizon: int) -> ReadSeries:
    """The history that a state stands for, and the new values behind it; raises the InputError that stands in its way."""
    held, style = _opened(asked.state, where=asked.id, model=model, seal=seal)
    if held.id != asked.id:
        raise BadState(
            f"Expected the state of series {asked.id!r}; found that of another series. Send the one that came with it.",
            where=asked.id,
        )
    _check_static(held, asked)
    held, style = _followed(held, style, asked)
    y = np.array(asked.y, dtype=np.float64)
    timestamps.check_room(held.start, offset(held.freq), len(held) + len(y) + horizon, where=asked.id)
    columns = columns_of(asked.covariates, steps=max(len(y), 1), encoding=model.encoding, where=asked.id)
    channels = channels_of(asked.channels, steps=len(y), where=asked.id)
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
        held.past,
    )
    return ReadSeries(whole, style)


def _opened(text: str, *, where: str, model: Model, seal: Seal) -> ReadSeries:
    """What `issue` wrote; raises BadState for anything else, StateOfOtherModel for what it wrote of another."""
    raw = _decoded(text, most=seal.most)
    signed, mac = raw[:-_MAC], raw[-_MAC:]
    good = False
    for key in seal.keys:  # all of them, in constant time: the delay tells nothing
        good |= hmac.compare_digest(_mac(key, signed), mac)
    if not good:
        raise BadState(
            f"Expected a state of series {where!r} as this server gave it; found one that was altered, cut off, or signed with a "
            f"key that is known no more. {_RESEND}",
            where=where,
        )
    if not signed.startswith(FORMAT):
        raise BadState(f"The state of series {where!r} has a form of another time. {_RESEND}", where=where)
    digest, packed = signed[len(FORMAT) :][:_DIGEST], signed[len(FORMAT) + _DIGEST :]
    if digest.hex() != model.digest:
        raise StateOfOtherModel(
            f"The state of series {where!r} was left by the model {digest.hex()[:12]}; the one in use is {model.digest[:12]}. "
            f"{_RESEND}",
            where=where,
        )
    try:
        return _unpacked(packed, encoding=model.encoding, most=_UNPACKED * seal.most)
    except (zlib.error, ValidationError, ValueError, IndexError, KeyError) as error:
        raise BadState(f"The state of series {where!r} holds what cannot be used. {_RESEND}", where=where) from error


def _decoded(text: str, *, most: int) -> bytes:
    """The bytes of a text; none where it is too long, or there is another text for them."""
    try:
        raw = (
            base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True) if len(text) <= most else b""
        )
    except (binascii.Error, ValueError):
        return b""
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=") == text.encode() else b""


def _mac(key: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, signed, "sha256")


def _unpacked(packed: bytes, *, encoding: Encoding, most: int) -> ReadSeries:
    """The series of a body that was signed; raises ValueError, or what it is made of raises, where it is not sound."""
    unzip = zlib.decompressobj()
    body = unzip.decompress(packed, most)
    if not unzip.eof or unzip.unused_data:
        raise ValueError("longer than any state")
    size = int.from_bytes(body[:_SIZE], "big")
    head = _Head.model_validate_json(body[_SIZE : _SIZE + size])
    numbers = _Numbers(np.frombuffer(body[_SIZE + size :], dtype="<f8").astype(np.float64))
    y, covariates = numbers.take(head.steps), [numbers.take(head.steps) for _ in head.covariates]
    channels = [numbers.take(head.steps) for _ in head.channels]
    past = None if head.past is None else _past(head.past, numbers, steps=head.steps)
    if numbers.left or not np.isfinite(covariates).all() or any(map(_beyond, [y, *channels])):
        raise ValueError("numbers that cannot be reckoned with, or more than it says")
    series = Series(
        head.id,
        untell(head.start, freq=head.freq),
        head.freq,
        y,
        {name: _texts(name, column, encoding) for name, column in zip(head.covariates, covariates, strict=True)},
        head.static,
        dict(zip(head.channels, channels, strict=True)),
        past,
    )
    return ReadSeries(series, Numbers() if head.style is None else Style(*head.style))


class _Numbers:
    """Numbers end to end, of which the next ones are taken; raises ValueError where there are no more."""

    def __init__(self, numbers: Float64[np.ndarray, "number"]) -> None:
        self._numbers = numbers
        self._taken = 0

    @property
    def left(self) -> int:
        """How many are left."""
        return len(self._numbers) - self._taken

    def take(self, *shape: int) -> Float64[np.ndarray, "..."]:
        """The next ones in a shape."""
        count = math.prod(shape)
        if count > self.left:
            raise ValueError("fewer numbers than it says")
        self._taken += count
        return self._numbers[self._taken - count : self._taken].reshape(shape)


def _remembered(past: Past) -> _Remembered:
    shapes = [
        (place, [{name: list(one.shape) for name, one in member.items()} for member in each])
        for place, each in past.memories.items()
    ]
    return _Remembered(
        last=None if np.isnan(past.last) else past.last,
        changes=past.changes,
        counts=past.counts,
        season=past.season,
        memories=shapes,
    )


def _past(told: _Remembered, numbers: _Numbers, *, steps: int) -> Past:
    """The inverse of `_remembered`; raises ValueError where its numbers are not sound."""
    latest, memories = numbers.take(told.season), {}
    for place, members in told.memories:
        memories[place] = [
            {name: numbers.take(*shape).astype(KINDS[name]) for name, shape in member.items()} for member in members
        ]
    arrays = [one for each in memories.values() for member in each for one in member.values()]
    sound = all(np.isfinite(one).all() for one in arrays) and all(0 <= place <= steps for place in memories)
    if _beyond(latest) or min(*told.changes, *told.counts) < 0 or not sound:
        raise ValueError("numbers that cannot be reckoned with")
    return Past(latest, float("nan") if told.last is None else told.last, told.changes, told.counts, memories)


def _beyond(values: Float64[np.ndarray, "..."]) -> bool:
    return bool((np.abs(values) > LARGEST_VALUE).any())


def _coded(name: str, values: np.ndarray, encoding: Encoding) -> np.ndarray:
    """A covariate as numbers: texts by their place among those that the model knows, -1 for any other."""
    if values.dtype != object:
        return values
    known = {text: float(place) for place, text in enumerate(encoding.categories.get(name, ()))}
    return np.array([known.get(text, -1.0) for text in values.tolist()])


def _texts(name: str, codes: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The inverse of `_coded`; what the model does not know is a text that it does not know."""
    if name not in encoding.categories:
        return codes
    known = encoding.categories[name]
    unknown = "?" * (1 + max(map(len, known), default=0))
    return np.array([*known, unknown], dtype=object)[codes.astype(np.int64)]


def _check_static(held: Series, asked: CarriedSeries) -> None:
    for name, value in asked.static.items():
        if held.static.get(name, value) != value:
            raise StaticChanges(
                f"Series {asked.id!r} had {name!r}: {held.static[name]!r} when its state was made; found {value!r}. "
                "Send what it had, or nothing, or its whole history.",
                where=asked.id,
            )


def _followed(held: Series, style: Style | Numbers, asked: CarriedSeries) -> ReadSeries:
    """The held steps in the zone and style of the new stamps, which must follow; as they were where none were sent."""
    where = asked.id
    if asked.freq is not None and timestamps.step_of(asked.freq, where=where) != offset(held.freq):
        raise FrequencyMismatch(
            f"Series {where!r} has the frequency {held.freq!r} in its state, and {str(asked.freq)!r} is said. Leave it out.",
            where=where,
        )
    told: Sequence[str | int] = asked.ds if asked.ds is not None else [] if asked.start is None else [asked.start]
    if asked.ds is not None and (asked.start is not None or len(asked.ds) != len(asked.y)):
        raise BadStamp(
            f"Expected `start`, or one stamp in `ds` for each value, or neither; series {where!r} has {len(asked.ds)} stamps for "
            f"{len(asked.y)} values{'' if asked.start is None else ', and a start'}. Correct it.",
            where=where,
        )
    if not told:
        return ReadSeries(held, style)
    read, style = timestamps.read(told, where=where)
    start: Any = held.start
    first: Any = at(read, 0)
    if _kind(first) != _kind(start):
        raise BadStamp(
            f"Expected stamps of the kind that the state of series {where!r} goes on from, {tell(held.end)}; found "
            f"{tell(first)}. Write them alike, with or without an offset from UTC.",
            where=where,
        )
    moved = start.tz_convert(first.tz) if _kind(start) == "zoned" else start
    one = Series(held.id, moved, held.freq, held.y, held.covariates, held.static, held.channels, held.past)
    expected = one.stamps_ahead(len(read))
    odd = np.asarray(expected != read)
    if odd.any():
        place = int(odd.argmax())
        raise IrregularStamps(
            f"Expected stamps that follow the state of series {where!r}, {tell(at(expected, place))} at place {place}; found "
            f"{tell(at(read, place))}. Send every step since, null where nothing was observed.",
            where=where,
        )
    return ReadSeries(one, style)


def _kind(stamp: Stamp) -> str:
    return "number" if isinstance(stamp, int) else "plain" if stamp.tz is None else "zoned"
