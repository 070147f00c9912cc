"""Parses and writes large JSON in chunks, so that no single call holds the GIL, and delays other threads, for long.

An array is cut at commas; each piece is parsed as an array and the results are concatenated. The large members of an object are
parsed separately, with placeholder strings in their positions. The grammar of JSON is unambiguous, so the pieces and their
surroundings are each valid if and only if the whole text is, and give the same values wherever the cuts are. If the text has an
unexpected structure, or a piece is invalid, orjson parses the whole text; its errors and their positions are therefore unchanged.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import orjson

from forecaster.shapes import Int, UInt8

MIN_SPLIT_BYTES = 1 << 21  # smaller texts are parsed at once, which takes orjson a few milliseconds
PIECE_BYTES = 1 << 16  # approximate bytes of one piece of an array
NUMBERS_PER_CHUNK = 1 << 14  # approximate numbers serialised by one call
MIN_ARRAY_LENGTH = 1 << 10  # lists with at least so many values become arrays
_MIN_MEMBER_BYTES = 1 << 12  # members of an object with at least so many bytes are parsed separately
_WINDOW_BYTES = 1 << 17  # bytes searched by one vectorised pass
_MAX_DEPTH = 32  # nesting depth; no valid request is this deep, and orjson has its own limit
_WHITESPACE = b" \t\n\r"
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_BRACKET_MASK, _BRACKET_BITS = 0xD9, 0x59  # bits shared by [ ] { }; Y _ y and DEL share them too
_DEPTH_CHANGES = np.zeros(256, dtype=np.int8)  # change of the nesting depth by byte
_DEPTH_CHANGES[list(b"[{")], _DEPTH_CHANGES[list(b"]}")] = 1, -1


class ParsedJson(NamedTuple):
    """The value of a JSON text.

    Attributes:
        value: The value as orjson would return it.
        chunked_lists: The lists that were concatenated from pieces, inner lists first, each with the lengths of its pieces.
    """

    value: Any
    chunked_lists: Sequence[tuple[list[Any], list[int]]] = ()

    def release(self) -> None:
        """Empties the lists piece by piece: freeing a million values at once holds the GIL as long as creating them."""
        for values, counts in self.chunked_lists:
            for count in reversed(counts):
                del values[-count:]


def loads(text: bytes) -> ParsedJson:
    """Parses JSON; raises orjson.JSONDecodeError as orjson does."""
    if len(text) >= MIN_SPLIT_BYTES:
        try:
            return _JsonSplitter(text).parse()
        except (_NotSplittable, orjson.JSONDecodeError):
            pass  # orjson parses the whole text below, and reports errors with positions in it
    return ParsedJson(orjson.loads(text))


class _NotSplittable(Exception):
    """The text has a structure that cannot be cut into pieces."""


class _WindowStart(NamedTuple):
    """The lexical state at the first byte of a window."""

    in_string: bool  # whether the window begins inside a string
    is_escaped: bool  # whether its first character is escaped


class _Brackets(NamedTuple):
    """The brackets outside strings."""

    positions: Int[np.ndarray, "bracket"]  # offsets in the text
    depths: Int[np.ndarray, "bracket"]  # nesting depth after each bracket
    window_starts: list[_WindowStart]


class _Children(NamedTuple):
    """The arrays and objects directly inside an array or object."""

    first_brackets: Int[np.ndarray, "child"]  # index of the opening bracket
    last_brackets: Int[np.ndarray, "child"]  # index of the closing bracket
    open_positions: Int[np.ndarray, "child"]  # offset of the opening bracket in the text
    close_positions: Int[np.ndarray, "child"]  # offset of the closing bracket in the text
    large_children: Int[np.ndarray, "large"]  # indices of the children that are parsed separately


class _JsonSplitter:
    """Parses one large text in pieces."""

    def __init__(self, text: bytes) -> None:
        """Finds the brackets. Raises _NotSplittable."""
        self._text = text
        self._bytes = np.frombuffer(text, dtype=np.uint8)
        self._brackets = _find_brackets(self._bytes)
        self._token = secrets.token_hex(8)  # random, so that no string of the request equals a placeholder
        self._chunked_lists: list[tuple[list[Any], list[int]]] = []

    def parse(self) -> ParsedJson:
        """Parses the text. Raises _NotSplittable and JSONDecodeError."""
        positions, depths, _ = self._brackets
        last = len(positions) - 1
        if last < 1 or depths[last] != 0 or (depths[:last] < 1).any() or depths.max() > _MAX_DEPTH:
            raise _NotSplittable
        if self._text[: positions[0]].strip(_WHITESPACE) or self._text[positions[last] + 1 :].strip(_WHITESPACE):
            raise _NotSplittable
        return ParsedJson(self._parse_value(0, last), self._chunked_lists)

    def _parse_value(self, first: int, last: int) -> Any:
        """Parses the array or object between two matching brackets, given by their indices."""
        positions, depths, _ = self._brackets
        start, end = int(positions[first]), int(positions[last])
        if end - start < PIECE_BYTES:
            return orjson.loads(self._text[start : end + 1])
        closing = first + 1 + np.flatnonzero(depths[first + 1 : last] == depths[first])
        opening = np.concatenate([[first + 1], closing[:-1] + 1])[: len(closing)]
        open_positions, close_positions = positions[opening], positions[closing]
        lengths = close_positions - open_positions
        kind = bytes([self._text[start], self._text[end]])
        if kind == b"[]":
            large = np.flatnonzero(lengths >= PIECE_BYTES)
            children = _Children(opening, closing, open_positions, close_positions, large)
            return self._parse_array(start + 1, end, children)
        if kind == b"{}":
            large = np.flatnonzero(lengths >= _MIN_MEMBER_BYTES)
            children = _Children(opening, closing, open_positions, close_positions, large)
            return self._parse_object(start, end + 1, children)
        raise _NotSplittable

    def _parse_object(self, start: int, end: int, children: _Children) -> dict[str, Any]:
        """Parses the object in `text[start:end]`; large members are replaced by placeholders and parsed separately."""
        placeholders: dict[str, tuple[int, int]] = {}
        pieces: list[bytes] = []
        for child in children.large_children.tolist():
            placeholder = f"{self._token}{child}"
            placeholders[placeholder] = int(children.first_brackets[child]), int(children.last_brackets[child])
            pieces += [self._text[start : children.open_positions[child]], b'"%b"' % placeholder.encode()]
            start = int(children.close_positions[child]) + 1
        members: dict[str, Any] = orjson.loads(b"".join([*pieces, self._text[start:end]]))
        replaced = [(key, value) for key, value in members.items() if isinstance(value, str) and value in placeholders]
        if len(replaced) != len(placeholders):
            raise _NotSplittable  # a repeated key, of which the last value counts
        for key, placeholder in replaced:
            members[key] = self._parse_value(*placeholders[placeholder])
        return members

    def _parse_array(self, start: int, end: int, children: _Children) -> list[Any]:
        """Parses the elements in `text[start:end]`, which excludes the brackets of the array."""
        elements: list[Any] = []
        counts: list[int] = []
        while True:
            stop, child = self._next_piece(start, end, children)
            if child is None:
                piece = orjson.loads(b"[%b]" % self._text[start:stop])
            else:
                piece = [self._parse_value(int(children.first_brackets[child]), int(children.last_brackets[child]))]
            if not piece and (elements or stop < end):
                raise _NotSplittable  # a comma without an element
            elements += piece
            counts.append(len(piece))
            if stop == end:
                break
            start = stop + 1
        self._chunked_lists.append((elements, counts))
        return elements

    def _next_piece(self, start: int, end: int, children: _Children) -> tuple[int, int | None]:
        """Finds the piece that begins at `start`.

        Returns the offset where it stops (a comma, or `end`), and the index of the large child it consists of, else None.
        """
        open_positions, close_positions = children.open_positions, children.close_positions
        large = children.large_children
        next_large = np.searchsorted(open_positions[large], start)
        child = int(large[next_large]) if next_large < len(large) else None
        limit = end if child is None else int(open_positions[child])
        if child is not None and not self._text[start:limit].strip(_WHITESPACE):
            after = int(close_positions[child]) + 1
            stop = self._text.find(b",", after, end)
            stop = end if stop < 0 else stop
            if self._text[after:stop].strip(_WHITESPACE):
                raise _NotSplittable
            return stop, child
        stop = self._find_comma(start + PIECE_BYTES, limit, children) if start + PIECE_BYTES < limit else -1
        if stop >= 0 or child is None:
            return (end if stop < 0 else stop), None
        stop = self._text.rfind(b",", start, limit)  # the comma before the large child
        if stop < 0:
            raise _NotSplittable
        return stop, None

    def _find_comma(self, start: int, end: int, children: _Children) -> int:
        """Returns the offset of the first comma between elements in `text[start:end]`; -1 if there is none."""
        child = int(np.searchsorted(children.close_positions, start))
        child_start = int(children.open_positions[child]) if child < len(children.open_positions) else end
        stop = self._find_unquoted_comma(start, min(child_start, end)) if start < child_start else -1
        if stop >= 0 or child_start >= end:
            return stop
        return self._text.find(b",", int(children.close_positions[child]) + 1, end)

    def _find_unquoted_comma(self, start: int, end: int) -> int:
        """Returns the offset of the first comma outside strings in `text[start:end]`; -1 if there is none.

        The range must contain no brackets outside strings.
        """
        while start < end:
            window = start // _WINDOW_BYTES
            window_start, window_end = window * _WINDOW_BYTES, min((window + 1) * _WINDOW_BYTES, end)
            state = self._brackets.window_starts[window]
            window_bytes = self._bytes[window_start:window_end]
            quotes, _ = _find_unescaped_quotes(
                np.flatnonzero(window_bytes == _QUOTE), window_bytes, escaped=state.is_escaped
            )
            while (comma := self._text.find(b",", start, window_end)) >= 0:
                quotes_before = int(np.searchsorted(quotes, comma - window_start))
                if quotes_before % 2 == state.in_string:
                    return comma
                if quotes_before == len(quotes):
                    break  # the string continues in the next window
                start = window_start + int(quotes[quotes_before]) + 1
            start = window_end
        return -1


def _find_brackets(text: UInt8[np.ndarray, "byte"]) -> _Brackets:
    """Finds the brackets outside strings. Raises _NotSplittable if there are none, too many, or too deeply nested ones."""
    all_positions: list[Int[np.ndarray, "window_bracket"]] = []
    all_depths: list[Int[np.ndarray, "window_bracket"]] = []
    window_starts: list[_WindowStart] = []
    in_string = escaped = False
    depth = count = 0
    for start in range(0, len(text), _WINDOW_BYTES):
        window = text[start : start + _WINDOW_BYTES]
        window_starts.append(_WindowStart(in_string, escaped))
        candidates = np.flatnonzero(((window & _BRACKET_MASK) == _BRACKET_BITS) | (window == _QUOTE))
        characters = window[candidates]
        quotes, escaped = _find_unescaped_quotes(candidates[characters == _QUOTE], window, escaped=escaped)
        changes = _DEPTH_CHANGES[characters]
        positions, changes = candidates[changes != 0], changes[changes != 0]
        outside_strings = np.searchsorted(quotes, positions) % 2 == in_string
        positions, changes = positions[outside_strings], changes[outside_strings]
        in_string ^= bool(len(quotes) % 2)
        if not len(positions):
            continue
        depths = depth + np.cumsum(changes)
        depth, count = int(depths[-1]), count + len(positions)
        if depths.max() > _MAX_DEPTH or count > len(text) // 2:
            raise _NotSplittable
        all_positions.append(positions + start)
        all_depths.append(depths.astype(np.int8))
    if not all_positions:
        raise _NotSplittable
    return _Brackets(np.concatenate(all_positions), np.concatenate(all_depths), window_starts)


def _find_unescaped_quotes(
    quotes: Int[np.ndarray, "quote"], window: UInt8[np.ndarray, "byte"], *, escaped: bool
) -> tuple[Int[np.ndarray, "unescaped"], bool]:
    """Finds the quotes that begin or end a string.

    Args:
        quotes: Offsets of all quotes in the window.
        window: The bytes of the window.
        escaped: Whether the first character of the window is escaped.
    Returns:
        The offsets of the unescaped quotes, and whether the first character after the window is escaped.
    """
    backslashes = np.flatnonzero(window == _BACKSLASH)
    if escaped:
        quotes, backslashes = quotes[quotes > 0], backslashes[backslashes > 0]
    if not len(backslashes):
        return quotes, False
    runs = np.flatnonzero(np.diff(backslashes, prepend=-2) > 1)  # index of the first backslash of each run
    lengths = np.diff(runs, append=len(backslashes))
    escaped_positions = (backslashes[runs] + lengths)[
        lengths % 2 == 1
    ]  # in a run of even length they escape each other
    is_next_escaped = bool(len(escaped_positions)) and int(escaped_positions[-1]) == len(window)
    return quotes[~np.isin(quotes, escaped_positions)], is_next_escaped


def dumps(value: Any) -> bytes:
    """Serialises a value in chunks, to the same bytes as orjson with OPT_SERIALIZE_NUMPY."""
    pieces: list[bytes] = []
    _append_json(value, pieces)
    return b"".join(pieces)


def _append_json(value: Any, pieces: list[bytes]) -> None:
    if _count_values(value) <= NUMBERS_PER_CHUNK:
        pieces.append(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))
    elif isinstance(value, dict):
        for index, (key, member) in enumerate(value.items()):
            pieces.append((b"," if index else b"{") + orjson.dumps(key) + b":")
            _append_json(member, pieces)
        pieces.append(b"}")
    else:
        separator = b"["
        for chunk in _iter_chunks(value):
            pieces.append(separator)
            separator = b","
            if len(chunk) == 1:
                _append_json(chunk[0], pieces)
            else:
                pieces.append(orjson.dumps(chunk, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
        pieces.append(b"]")


def _iter_chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yields the elements in order, in chunks of about NUMBERS_PER_CHUNK values."""
    if isinstance(values, np.ndarray) or _is_flat(values):
        chunk_length = max(1, NUMBERS_PER_CHUNK * len(values) // _count_values(values))
        yield from (values[start : start + chunk_length] for start in range(0, len(values), chunk_length))
        return
    chunk: list[Any] = []
    chunk_size = 0
    for value in values:
        size = _count_values(value)
        if chunk and chunk_size + size > NUMBERS_PER_CHUNK:
            yield chunk
            chunk, chunk_size = [], 0
        chunk.append(value)
        chunk_size += size
    yield chunk


def _count_values(value: Any) -> int:
    """Returns the approximate number of scalars in a value."""
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
    """Converts a long list of numbers to an array, which is freed at once, with NaN for null; returns short lists unchanged.

    As a pydantic validator written in Python, it also gives other threads a chance to run between the lists of a request.
    """
    return values if len(values) < MIN_ARRAY_LENGTH else cast("Sequence[Any]", np.array(values, dtype=np.float64))
