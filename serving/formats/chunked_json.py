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

MIN_SPLIT_BYTES = 1 << 21  # bytes of a text; a smaller one takes orjson some milliseconds
PIECE_BYTES = 1 << 16  # bytes of a piece
NUMBERS_PER_CHUNK = 1 << 14  # that are written at once
MIN_ARRAY_LENGTH = 1 << 10  # values of a list
_MIN_MEMBER_BYTES = 1 << 12  # bytes of a member of an object above which it is parsed alone
_WINDOW_BYTES = 1 << 17  # bytes that are looked through at once
_MAX_DEPTH = 32  # of brackets in brackets; no request of ours is so deep, and orjson has a limit of its own
_WHITESPACE = b" \t\n\r"
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_BRACKET_MASK, _BRACKET_BITS = 0xD9, 0x59  # bits that are the same in [ ] { }; Y _ y and DEL have them too
_DEPTH_CHANGES = np.zeros(256, dtype=np.int8)  # of the depth
_DEPTH_CHANGES[list(b"[{")], _DEPTH_CHANGES[list(b"]}")] = 1, -1


class ParsedJson(NamedTuple):
    """What a text says.

    Attributes:
        value: As orjson gives it.
        lists: Those of its lists that were put together, inner ones first, with the numbers of elements of their pieces.
    """

    value: Any
    chunked_lists: Sequence[tuple[list[Any], list[int]]] = ()

    def release(self) -> None:
        """Empties the lists in parts: to free a million values at once would keep the lock as long as to make them."""
        for values, counts in self.chunked_lists:
            for count in reversed(counts):
                del values[-count:]


def loads(text: bytes) -> ParsedJson:
    """JSON; raises orjson.JSONDecodeError as orjson does."""
    if len(text) >= MIN_SPLIT_BYTES:
        try:
            return _JsonSplitter(text).parse()
        except (_NotSplittable, orjson.JSONDecodeError):
            pass  # said below, of the whole
    return ParsedJson(orjson.loads(text))


class _NotSplittable(Exception):
    """A text that is not cut as expected."""


class _WindowStart(NamedTuple):
    """What is known where a window begins."""

    in_string: bool  # it is in a string
    is_escaped: bool  # its first character is


class _Brackets(NamedTuple):
    """Those outside of strings."""

    positions: Int[np.ndarray, "bracket"]  # in the text
    depths: Int[np.ndarray, "bracket"]  # after each
    window_starts: list[_WindowStart]  # where each window begins


class _Children(NamedTuple):
    """The arrays and objects in one."""

    first_brackets: Int[np.ndarray, "child"]  # bracket of each
    last_brackets: Int[np.ndarray, "child"]
    open_positions: Int[np.ndarray, "child"]  # where they are in the text
    close_positions: Int[np.ndarray, "child"]
    large_children: Int[np.ndarray, "some"]  # those that are parsed alone


class _JsonSplitter:
    """A text that is being parsed in parts."""

    def __init__(self, text: bytes) -> None:
        """Raises _Odd."""
        self._text = text
        self._bytes = np.frombuffer(text, dtype=np.uint8)
        self._brackets = _find_brackets(self._bytes)
        self._token = secrets.token_hex(8)  # so that no text of a request is taken for one of ours
        self._chunked_lists: list[tuple[list[Any], list[int]]] = []

    def parse(self) -> ParsedJson:
        """What it says. Raises _Odd and JSONDecodeError."""
        places, depths, _ = self._brackets
        last = len(places) - 1
        if last < 1 or depths[last] != 0 or (depths[:last] < 1).any() or depths.max() > _MAX_DEPTH:
            raise _NotSplittable
        if self._text[: places[0]].strip(_WHITESPACE) or self._text[places[last] + 1 :].strip(_WHITESPACE):
            raise _NotSplittable
        return ParsedJson(self._parse_value(0, last), self._chunked_lists)

    def _parse_value(self, first: int, last: int) -> Any:
        """What stands from one bracket to the one that closes it."""
        places, depths, _ = self._brackets
        start, end = int(places[first]), int(places[last])
        if end - start < PIECE_BYTES:
            return orjson.loads(self._text[start : end + 1])
        closing = first + 1 + np.flatnonzero(depths[first + 1 : last] == depths[first])
        opening = np.concatenate([[first + 1], closing[:-1] + 1])[: len(closing)]
        opens, closes = places[opening], places[closing]
        kind = bytes([self._text[start], self._text[end]])
        if kind == b"[]":
            large = np.flatnonzero(closes - opens >= PIECE_BYTES)
            return self._parse_array(start + 1, end, _Children(opening, closing, opens, closes, large))
        if kind == b"{}":
            large = np.flatnonzero(closes - opens >= _MIN_MEMBER_BYTES)
            return self._parse_object(start, end + 1, _Children(opening, closing, opens, closes, large))
        raise _NotSplittable

    def _parse_object(self, start: int, end: int, children: _Children) -> dict[str, Any]:
        """That from `start` to before `end`."""
        waiting: dict[str, tuple[int, int]] = {}
        told: list[bytes] = []
        for child in children.large_children.tolist():
            name = f"{self._token}{child}"
            waiting[name] = int(children.first_brackets[child]), int(children.last_brackets[child])
            told += [self._text[start : children.open_positions[child]], b'"%b"' % name.encode()]
            start = int(children.close_positions[child]) + 1
        members: dict[str, Any] = orjson.loads(b"".join([*told, self._text[start:end]]))
        theirs = [(key, value) for key, value in members.items() if isinstance(value, str) and value in waiting]
        if len(theirs) != len(waiting):
            raise _NotSplittable  # two of a name: the last counts
        for key, name in theirs:
            members[key] = self._parse_value(*waiting[name])
        return members

    def _parse_array(self, start: int, end: int, children: _Children) -> list[Any]:
        """That of the elements from `start` to before `end`."""
        found: list[Any] = []
        counts: list[int] = []
        while True:
            stop, child = self._next_piece(start, end, children)
            if child is None:
                some = orjson.loads(b"[%b]" % self._text[start:stop])
            else:
                some = [self._parse_value(int(children.first_brackets[child]), int(children.last_brackets[child]))]
            if not some and (found or stop < end):
                raise _NotSplittable  # a comma without an element
            found += some
            counts.append(len(some))
            if stop == end:
                break
            start = stop + 1
        self._chunked_lists.append((found, counts))
        return found

    def _next_piece(self, start: int, end: int, children: _Children) -> tuple[int, int | None]:
        """Where the piece that begins at `start` stops: at a comma, or at the end; and which large child it is, if it is one."""
        opens, closes, large = children.open_positions, children.close_positions, children.large_children
        place = np.searchsorted(opens[large], start)
        child = int(large[place]) if place < len(large) else None
        wall = end if child is None else int(opens[child])
        if child is not None and not self._text[start:wall].strip(_WHITESPACE):
            after = int(closes[child]) + 1
            stop = self._text.find(b",", after, end)
            stop = end if stop < 0 else stop
            if self._text[after:stop].strip(_WHITESPACE):
                raise _NotSplittable
            return stop, child
        stop = self._find_comma(start + PIECE_BYTES, wall, children) if start + PIECE_BYTES < wall else -1
        if stop >= 0 or child is None:
            return (end if stop < 0 else stop), None
        stop = self._text.rfind(b",", start, wall)  # the one before the child
        if stop < 0:
            raise _NotSplittable
        return stop, None

    def _find_comma(self, begin: int, end: int, children: _Children) -> int:
        """The first comma between elements from `begin` to before `end`; -1 if there is none."""
        child = int(np.searchsorted(children.close_positions, begin))
        begins = int(children.open_positions[child]) if child < len(children.open_positions) else end
        stop = self._find_unquoted_comma(begin, min(begins, end)) if begin < begins else -1
        if stop >= 0 or begins >= end:
            return stop
        return self._text.find(b",", int(children.close_positions[child]) + 1, end)

    def _find_unquoted_comma(self, begin: int, end: int) -> int:
        """The first comma outside of strings from `begin` to before `end`, where no brackets are; -1 if there is none."""
        while begin < end:
            window = begin // _WINDOW_BYTES
            begins, ends = window * _WINDOW_BYTES, min((window + 1) * _WINDOW_BYTES, end)
            spot = self._brackets.window_starts[window]
            seen = self._bytes[begins:ends]
            quotes, _ = _find_unescaped_quotes(np.flatnonzero(seen == _QUOTE), seen, escaped=spot.is_escaped)
            while (comma := self._text.find(b",", begin, ends)) >= 0:
                before = int(np.searchsorted(quotes, comma - begins))
                if before % 2 == spot.in_string:
                    return comma
                if before == len(quotes):
                    break  # the string goes on in the next window
                begin = begins + int(quotes[before]) + 1
            begin = ends
        return -1


def _find_brackets(text: UInt8[np.ndarray, "byte"]) -> _Brackets:
    """Raises _Odd where there are too many, or they are too deep."""
    places: list[Int[np.ndarray, "some"]] = []
    depths: list[Int[np.ndarray, "some"]] = []
    spots: list[_WindowStart] = []
    quoted = escaped = False
    depth = count = 0
    for begins in range(0, len(text), _WINDOW_BYTES):
        window = text[begins : begins + _WINDOW_BYTES]
        spots.append(_WindowStart(quoted, escaped))
        marks = np.flatnonzero(((window & _BRACKET_MASK) == _BRACKET_BITS) | (window == _QUOTE))
        kinds = window[marks]
        quotes, escaped = _find_unescaped_quotes(marks[kinds == _QUOTE], window, escaped=escaped)
        rises = _DEPTH_CHANGES[kinds]
        found, rises = marks[rises != 0], rises[rises != 0]
        outside = np.searchsorted(quotes, found) % 2 == quoted
        found, rises = found[outside], rises[outside]
        quoted ^= bool(len(quotes) % 2)
        if not len(found):
            continue
        after = depth + np.cumsum(rises)
        depth, count = int(after[-1]), count + len(found)
        if after.max() > _MAX_DEPTH or count > len(text) // 2:
            raise _NotSplittable
        places.append(found + begins)
        depths.append(after.astype(np.int8))
    if not places:
        raise _NotSplittable
    return _Brackets(np.concatenate(places), np.concatenate(depths), spots)


def _find_unescaped_quotes(
    quotes: Int[np.ndarray, "quote"], window: UInt8[np.ndarray, "byte"], *, escaped: bool
) -> tuple[Int[np.ndarray, "some"], bool]:
    """Those that begin or end a string, and whether the character after the window is escaped; `is_escaped`: its first is."""
    slashes = np.flatnonzero(window == _BACKSLASH)
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
    _append_json(value, pieces)
    return b"".join(pieces)


def _append_json(value: Any, pieces: list[bytes]) -> None:
    if _count_values(value) <= NUMBERS_PER_CHUNK:
        pieces.append(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
    elif isinstance(value, dict):
        for place, (key, inner) in enumerate(value.items()):
            pieces.append((b"," if place else b"{") + orjson.dumps(key) + b":")
            _append_json(inner, pieces)
        pieces.append(b"}")
    else:
        lead = b"["
        for some in _iter_chunks(value):
            pieces.append(lead)
            lead = b","
            if len(some) == 1:
                _append_json(some[0], pieces)
            else:
                pieces.append(orjson.dumps(some, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        pieces.append(b"]")


def _iter_chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Its elements in turn, as many at a time as are written at once."""
    if isinstance(values, np.ndarray) or _is_flat(values):
        at_once = max(1, NUMBERS_PER_CHUNK * len(values) // _count_values(values))
        yield from (values[first : first + at_once] for first in range(0, len(values), at_once))
        return
    run: list[Any] = []
    held = 0
    for one in values:
        size = _count_values(one)
        if run and held + size > NUMBERS_PER_CHUNK:
            yield run
            run, held = [], 0
        run.append(one)
        held += size
    yield run


def _count_values(value: Any) -> int:
    """Numbers and texts in it, about."""
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, dict):
        return sum(map(_count_values, value.values()))
    if isinstance(value, list):
        return len(value) if _is_flat(value) else sum(map(_count_values, value))
    return 1


def _is_flat(values: Sequence[Any]) -> bool:
    return not values or isinstance(values[0], str | int | float)


def to_array(values: list[Any]) -> Sequence[Any]:
    """Many numbers as an array, which is freed at once; null is NaN. A few stay what they are.

    That Python is asked at all, list by list, lets other threads have their turns while pydantic reads a request.
    """
    return values if len(values) < MIN_ARRAY_LENGTH else cast("Sequence[Any]", np.array(values, dtype=np.float64))
