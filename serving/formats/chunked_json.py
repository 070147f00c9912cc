"""Large JSON in parts, so that no single call of the parser keeps Python's lock, and other threads waiting, for long.

An array is cut at commas, each piece is parsed as an array of its own, and these are put together; of an object the larger
members are parsed alone, with texts in their places meanwhile. Whatever the cuts were: JSON has one reading, so pieces and what
is around them are valid, each alone, if and only if the whole is, and mean the same. Anything odd, and any error, is left to
orjson with the whole text: what it says, and where, stays what it was.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import orjson

from forecaster.shapes import Int, UInt8

PARTS_FROM = 1 << 21  # bytes of a text; a smaller one takes orjson some milliseconds
PIECE = 1 << 16  # bytes of a piece
NUMBERS = 1 << 14  # that are written at once
PACKED_FROM = 1 << 10  # values of a list
_MEMBER = 1 << 12  # bytes of a member of an object above which it is parsed alone
_WINDOW = 1 << 17  # bytes that are looked through at once
_DEEPEST = 32  # of brackets in brackets; no request of ours is so deep, and orjson has a limit of its own
_BLANK = b" \t\n\r"
_QUOTE, _SLASH, _COMMA = b'"\\,'
_SHARED, _BRACKET = 0xD9, 0x59  # bits that are the same in [ ] { }; Y _ y and DEL have them too
_RISES = np.zeros(256, dtype=np.int8)  # of the depth
_RISES[list(b"[{")], _RISES[list(b"]}")] = 1, -1


class Parted(NamedTuple):
    """What a text says.

    Attributes:
        value: As orjson gives it.
        lists: Those of its lists that were put together, inner ones first, with the numbers of elements of their pieces.
    """

    value: Any
    lists: Sequence[tuple[list[Any], list[int]]] = ()

    def let_go(self) -> None:
        """Empties the lists in parts: to free a million values at once would keep the lock as long as to make them."""
        for values, counts in self.lists:
            for count in reversed(counts):
                del values[-count:]


def loads(text: bytes) -> Parted:
    """JSON; raises orjson.JSONDecodeError as orjson does."""
    if len(text) >= PARTS_FROM:
        try:
            return _Cutting(text).whole()
        except (_Odd, orjson.JSONDecodeError):
            pass  # said below, of the whole
    return Parted(orjson.loads(text))


class _Odd(Exception):
    """A text that is not cut as expected."""


class _Spot(NamedTuple):
    """What is known where a window begins."""

    quoted: bool  # it is in a string
    escaped: bool  # its first character is


class _Brackets(NamedTuple):
    """Those outside of strings."""

    places: Int[np.ndarray, "bracket"]  # in the text
    depths: Int[np.ndarray, "bracket"]  # after each
    spots: list[_Spot]  # where each window begins


class _Children(NamedTuple):
    """The arrays and objects in one."""

    first: Int[np.ndarray, "child"]  # bracket of each
    last: Int[np.ndarray, "child"]
    opens: Int[np.ndarray, "child"]  # where they are in the text
    closes: Int[np.ndarray, "child"]
    large: Int[np.ndarray, "some"]  # those that are parsed alone


class _Cutting:
    """A text that is being parsed in parts."""

    def __init__(self, text: bytes) -> None:
        """Raises _Odd."""
        self._text = text
        self._bytes = np.frombuffer(text, dtype=np.uint8)
        self._brackets = _brackets(self._bytes)
        self._token = secrets.token_hex(8)  # so that no text of a request is taken for one of ours
        self._lists: list[tuple[list[Any], list[int]]] = []

    def whole(self) -> Parted:
        """What it says. Raises _Odd and JSONDecodeError."""
        places, depths, _ = self._brackets
        last = len(places) - 1
        if last < 1 or depths[last] != 0 or (depths[:last] < 1).any() or depths.max() > _DEEPEST:
            raise _Odd
        if self._text[: places[0]].strip(_BLANK) or self._text[places[last] + 1 :].strip(_BLANK):
            raise _Odd
        return Parted(self._value(0, last), self._lists)

    def _value(self, first: int, last: int) -> Any:
        """What stands from one bracket to the one that closes it."""
        places, depths, _ = self._brackets
        start, end = int(places[first]), int(places[last])
        if end - start < PIECE:
            return orjson.loads(self._text[start : end + 1])
        closing = first + 1 + np.flatnonzero(depths[first + 1 : last] == depths[first])
        opening = np.concatenate([[first + 1], closing[:-1] + 1])[: len(closing)]
        opens, closes = places[opening], places[closing]
        kind = bytes([self._text[start], self._text[end]])
        if kind == b"[]":
            large = np.flatnonzero(closes - opens >= PIECE)
            return self._array(start + 1, end, _Children(opening, closing, opens, closes, large))
        if kind == b"{}":
            large = np.flatnonzero(closes - opens >= _MEMBER)
            return self._object(start, end + 1, _Children(opening, closing, opens, closes, large))
        raise _Odd

    def _object(self, start: int, end: int, children: _Children) -> dict[str, Any]:
        """That from `start` to before `end`."""
        waiting: dict[str, tuple[int, int]] = {}
        told: list[bytes] = []
        for child in children.large.tolist():
            name = f"{self._token}{child}"
            waiting[name] = int(children.first[child]), int(children.last[child])
            told += [self._text[start : children.opens[child]], b'"%b"' % name.encode()]
            start = int(children.closes[child]) + 1
        members: dict[str, Any] = orjson.loads(b"".join([*told, self._text[start:end]]))
        theirs = [(key, value) for key, value in members.items() if isinstance(value, str) and value in waiting]
        if len(theirs) != len(waiting):
            raise _Odd  # two of a name: the last counts
        for key, name in theirs:
            members[key] = self._value(*waiting[name])
        return members

    def _array(self, start: int, end: int, children: _Children) -> list[Any]:
        """That of the elements from `start` to before `end`."""
        found: list[Any] = []
        counts: list[int] = []
        while True:
            stop, child = self._next(start, end, children)
            if child is None:
                some = orjson.loads(b"[%b]" % self._text[start:stop])
            else:
                some = [self._value(int(children.first[child]), int(children.last[child]))]
            if not some and (found or stop < end):
                raise _Odd  # a comma without an element
            found += some
            counts.append(len(some))
            if stop == end:
                break
            start = stop + 1
        self._lists.append((found, counts))
        return found

    def _next(self, start: int, end: int, children: _Children) -> tuple[int, int | None]:
        """Where the piece that begins at `start` stops: at a comma, or at the end; and which large child it is, if it is one."""
        opens, closes, large = children.opens, children.closes, children.large
        place = np.searchsorted(opens[large], start)
        child = int(large[place]) if place < len(large) else None
        wall = end if child is None else int(opens[child])
        if child is not None and not self._text[start:wall].strip(_BLANK):
            after = int(closes[child]) + 1
            stop = self._text.find(b",", after, end)
            stop = end if stop < 0 else stop
            if self._text[after:stop].strip(_BLANK):
                raise _Odd
            return stop, child
        stop = self._comma(start + PIECE, wall, children) if start + PIECE < wall else -1
        if stop >= 0 or child is None:
            return (end if stop < 0 else stop), None
        stop = self._text.rfind(b",", start, wall)  # the one before the child
        if stop < 0:
            raise _Odd
        return stop, None

    def _comma(self, place: int, wall: int, children: _Children) -> int:
        """The first comma between elements from `place` to before `wall`; -1 if there is none."""
        child = int(np.searchsorted(children.closes, place))
        begins = int(children.opens[child]) if child < len(children.opens) else wall
        stop = self._flat(place, min(begins, wall)) if place < begins else -1
        if stop >= 0 or begins >= wall:
            return stop
        return self._text.find(b",", int(children.closes[child]) + 1, wall)

    def _flat(self, place: int, wall: int) -> int:
        """The first comma outside of strings from `place` to before `wall`, where no brackets are; -1 if there is none."""
        while place < wall:
            window = place // _WINDOW
            begins, ends = window * _WINDOW, min((window + 1) * _WINDOW, wall)
            spot = self._brackets.spots[window]
            seen = self._bytes[begins:ends]
            quotes, _ = _unescaped(np.flatnonzero(seen == _QUOTE), seen, escaped=spot.escaped)
            while (comma := self._text.find(b",", place, ends)) >= 0:
                before = int(np.searchsorted(quotes, comma - begins))
                if before % 2 == spot.quoted:
                    return comma
                if before == len(quotes):
                    break  # the string goes on in the next window
                place = begins + int(quotes[before]) + 1
            place = ends
        return -1


def _brackets(text: UInt8[np.ndarray, "byte"]) -> _Brackets:
    """Raises _Odd where there are too many, or they are too deep."""
    places: list[Int[np.ndarray, "some"]] = []
    depths: list[Int[np.ndarray, "some"]] = []
    spots: list[_Spot] = []
    quoted = escaped = False
    depth = count = 0
    for begins in range(0, len(text), _WINDOW):
        window = text[begins : begins + _WINDOW]
        spots.append(_Spot(quoted, escaped))
        marks = np.flatnonzero(((window & _SHARED) == _BRACKET) | (window == _QUOTE))
        kinds = window[marks]
        quotes, escaped = _unescaped(marks[kinds == _QUOTE], window, escaped=escaped)
        rises = _RISES[kinds]
        found, rises = marks[rises != 0], rises[rises != 0]
        outside = np.searchsorted(quotes, found) % 2 == quoted
        found, rises = found[outside], rises[outside]
        quoted ^= bool(len(quotes) % 2)
        if not len(found):
            continue
        after = depth + np.cumsum(rises)
        depth, count = int(after[-1]), count + len(found)
        if after.max() > _DEEPEST or count > len(text) // 2:
            raise _Odd
        places.append(found + begins)
        depths.append(after.astype(np.int8))
    if not places:
        raise _Odd
    return _Brackets(np.concatenate(places), np.concatenate(depths), spots)


def _unescaped(
    quotes: Int[np.ndarray, "quote"], window: UInt8[np.ndarray, "byte"], *, escaped: bool
) -> tuple[Int[np.ndarray, "some"], bool]:
    """Those that begin or end a string, and whether the character after the window is escaped; `escaped`: its first is."""
    slashes = np.flatnonzero(window == _SLASH)
    if escaped:
        quotes, slashes = quotes[quotes > 0], slashes[slashes > 0]
    if not len(slashes):
        return quotes, False
    runs = np.flatnonzero(np.diff(slashes, prepend=-2) > 1)  # the first of each run of them
    lengths = np.diff(runs, append=len(slashes))
    after = (slashes[runs] + lengths)[lengths % 2 == 1]  # of an even run each escapes the next
    return quotes[~np.isin(quotes, after)], bool(len(after)) and int(after[-1]) == len(window)


def dumps(value: Any) -> bytes:
    """As orjson writes it, with its OPT_SERIALIZE_NUMPY."""
    pieces: list[bytes] = []
    _write(value, pieces)
    return b"".join(pieces)


def _write(value: Any, pieces: list[bytes]) -> None:
    if _size(value) <= NUMBERS:
        pieces.append(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
    elif isinstance(value, dict):
        for place, (key, inner) in enumerate(value.items()):
            pieces.append((b"," if place else b"{") + orjson.dumps(key) + b":")
            _write(inner, pieces)
        pieces.append(b"}")
    else:
        lead = b"["
        for some in _runs(value):
            pieces.append(lead)
            lead = b","
            if len(some) == 1:
                _write(some[0], pieces)
            else:
                pieces.append(orjson.dumps(some, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        pieces.append(b"]")


def _runs(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Its elements in turn, as many at a time as are written at once."""
    if isinstance(values, np.ndarray) or _is_flat(values):
        at_once = max(1, NUMBERS * len(values) // _size(values))
        yield from (values[first : first + at_once] for first in range(0, len(values), at_once))
        return
    run: list[Any] = []
    held = 0
    for one in values:
        size = _size(one)
        if run and held + size > NUMBERS:
            yield run
            run, held = [], 0
        run.append(one)
        held += size
    yield run


def _size(value: Any) -> int:
    """Numbers and texts in it, about."""
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return len(value) if _is_flat(value) else sum(map(_size, value))
    return 1


def _is_flat(values: Sequence[Any]) -> bool:
    return not values or isinstance(values[0], str | int | float)


def packed(values: list[Any]) -> Sequence[Any]:
    """Many numbers as an array, which is freed at once; null is NaN. A few stay what they are.

    That Python is asked at all, list by list, lets other threads have their turns while pydantic reads a request.
    """
    return values if len(values) < PACKED_FROM else cast("Sequence[Any]", np.array(values, dtype=np.float64))
