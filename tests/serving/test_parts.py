"""Large bodies are parsed in parts: the same values, and the same errors, as of orjson at once."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import parts

TINY = {"PARTS_FROM": 0, "PIECE": 12, "_MEMBER": 6, "_WINDOW": 7}
HARD = st.text(st.sampled_from('"\\[]{},: aé€😀\n\x00'), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | HARD
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=12) | st.dictionaries(HARD, inner, max_size=6), max_leaves=60
)
SHAPES = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"separators": (" ,\t", "\r: ")}])


@pytest.fixture(autouse=True, scope="module")
def _tiny() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, size in TINY.items():
            patch.setattr(parts, name, size)
        yield


def _told(load: Any, text: bytes) -> Any:
    try:
        return repr(load(text))  # of -0.0, of 1 and 1.0, and of the order of members too
    except orjson.JSONDecodeError as error:
        return type(error), error.msg, error.pos, error.lineno, error.colno


def _same(text: bytes) -> None:
    assert _told(lambda given: parts.loads(given).value, text) == _told(orjson.loads, text)


@settings(max_examples=400)
@given(DOCUMENTS, SHAPES, st.booleans())
def test_a_document_is_what_it_is_at_once(document: Any, shape: dict[str, Any], plain: bool) -> None:
    _same(json.dumps(document, ensure_ascii=plain, **shape).encode())


@settings(max_examples=400)
@given(DOCUMENTS, st.data())
def test_a_broken_document_is_refused_as_at_once(document: Any, data: st.DataObject) -> None:
    text = json.dumps(document).encode()
    place = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 3))
    wrong = data.draw(st.sampled_from([b"", b",", b'"', b"\\", b"]", b"}", b"[", b"{", b":", b"1", b"\xff", b" "]))
    _same(text[:place] + wrong + text[place + cut :])


@settings(max_examples=400)
@given(st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"\\", b":", b"12", b'"a":', b" "]), max_size=60))
def test_no_arrangement_of_marks_is_read_otherwise(marks: list[bytes]) -> None:
    _same(b"".join(marks))
    _same(b"[1,2,3,4,5,6,7,8," + b"".join(marks) + b"]")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": [1, 2, 3, 4, 5, 6, 7], "b": 0, "a": [7, 6, 5, 4, 3, 2, 1]}',  # the last of a name counts
        b'{"a": [1, 2, 3, 4, 5, 6, 7], "b": [1, 2, 3, 4, 5, 6], "a": 1}',
        b"[" * 40 + b"1,2,3,4,5,6,7,8,9" + b"]" * 40,
        b"[" * 2000 + b"]" * 2000,
        b"\xef\xbb\xbf[1,2,3,4,5,6,7,8,9,10]",
        b"[1,2,3,4,5,6,7,8,9,NaN]",
        b"[1,2,3,4,5,6,7,8,9]]",
        b"[1,2,3,4,5,6,7,8,9],[1,2,3,4,5,6,7,8,9]",
        b"[[1,2,3,4,5,6,7,8,9] [1,2,3,4,5,6,7,8,9]]",
        b"[[1,2,3,4,5,6,7,8,9],[1,2,3,4,5,6,7,8,9],]",
        b"[,[1,2,3,4,5,6,7,8,9],[1,2,3,4,5,6,7,8,9]]",
        b"[[1,2,3,4,5,6,7,8,9],,[1,2,3,4,5,6,7,8,9]]",
        b"[1[1,2,3,4,5,6,7,8,9],2[1,2,3,4,5,6,7,8,9]]",
        b"[[1,2,3,4,5,6,7,8,9}]",
        b'{"a":[1,2,3,4,5,6,7,8,9],}',
        b'{"a":"\\\\\\"[1,2,3,4,5,6,7,8,9]","b":[1,2,3,4,5,6,7,8,9]}',
        b"[                                        ]",
        b"",
        b"                                          ",
        b'"only a text, but a long one"',
    ],
)
def test_odd_ones(text: bytes) -> None:
    _same(text)
