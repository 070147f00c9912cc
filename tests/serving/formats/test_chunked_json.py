"""Large JSON that is parsed and written in chunks gives the same values, bytes and errors as orjson at once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ApiError
from serving.formats import chunked_json, parsing
from serving.formats.json_columns import ColumnsRequest
from serving.formats.schema import ForecastRequest

pytestmark = pytest.mark.integration

TINY_LIMITS = {
    "MIN_SPLIT_BYTES": 0,
    "PIECE_BYTES": 12,
    "_MIN_MEMBER_BYTES": 6,
    "_WINDOW_BYTES": 7,
    "NUMBERS_PER_CHUNK": 5,
    "MIN_ARRAY_LENGTH": 4,
}
DIFFICULT_TEXTS = st.text(st.sampled_from('"\\[]{},: aé€😀\n\x00'), max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | DIFFICULT_TEXTS
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(DIFFICULT_TEXTS, inner, max_size=6),
    max_leaves=60,
)
JSON_STYLES = st.sampled_from([{}, {"indent": 1}, {"separators": (",", ":")}, {"separators": (" ,\t", "\r: ")}])


@pytest.fixture(autouse=True, scope="module")
def _tiny_limits() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, size in TINY_LIMITS.items():
            patch.setattr(chunked_json, name, size)
        yield


def _parse_outcome(load: Any, text: bytes) -> Any:
    try:
        return repr(load(text))  # distinguishes -0.0 from 0.0, 1 from 1.0, and the order of members
    except orjson.JSONDecodeError as error:
        return type(error), error.msg, error.pos, error.lineno, error.colno


def check_parses_equally(text: bytes) -> None:
    assert _parse_outcome(lambda content: chunked_json.loads(content).value, text) == _parse_outcome(orjson.loads, text)


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, JSON_STYLES, st.booleans())
def test_chunked_parsing_equals_parsing_at_once(document: Any, style: dict[str, Any], plain: bool) -> None:
    check_parses_equally(json.dumps(document, ensure_ascii=plain, **style).encode())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(DOCUMENTS, min_size=1) | st.dictionaries(DIFFICULT_TEXTS, DOCUMENTS, min_size=1),
    JSON_STYLES,
    st.booleans(),
)
@pytest.mark.nightly
def test_every_array_or_object_is_parsed_in_chunks(document: Any, style: dict[str, Any], plain: bool) -> None:
    padded = ["a long text, so that fewer than half of the bytes are brackets" * 9, document]
    text = json.dumps(padded, ensure_ascii=plain, **style).encode()
    assert repr(chunked_json._JsonSplitter(text).parse().value) == repr(orjson.loads(text))


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, st.data())
def test_an_invalid_document_is_rejected_as_when_parsed_at_once(document: Any, data: st.DataObject) -> None:
    text = json.dumps(document).encode()
    position = data.draw(st.integers(0, len(text)))
    deleted = data.draw(st.integers(0, 3))
    inserted = data.draw(st.sampled_from([b"", b",", b'"', b"\\", b"]", b"}", b"[", b"{", b":", b"1", b"\xff", b" "]))
    check_parses_equally(text[:position] + inserted + text[position + deleted :])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([b"[", b"]", b"{", b"}", b",", b'"', b"\\", b":", b"12", b'"a":', b" "]), max_size=60))
def test_no_sequence_of_punctuation_is_parsed_differently(tokens: list[bytes]) -> None:
    check_parses_equally(b"".join(tokens))
    check_parses_equally(b"[1,2,3,4,5,6,7,8," + b"".join(tokens) + b"]")


@pytest.mark.parametrize(
    "text",
    [
        b'{"a": [1, 2, 3, 4, 5, 6, 7], "b": 0, "a": [7, 6, 5, 4, 3, 2, 1]}',  # the last value of a repeated key counts
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
def test_edge_cases(text: bytes) -> None:
    check_parses_equally(text)


def _rows_document() -> dict[str, Any]:
    fields = {"start": "2026-01-01T00:00:00Z", "freq": "h", "y": [1.5, None, 3, 4.0, 5, 6.25, 7]}
    columns = {"covariates": {"price, net": [1, 2.5, 3, 4, 5, 6, 7], 'say "when"': list("abcdefg")}}
    series = [{"id": f"[{index}]", **fields, **columns} for index in range(20)]
    return {"horizon": 2, "series": [{**item, "y": fields["y"][:]} for item in series]}


def _columns_document() -> dict[str, Any]:
    series = _rows_document()["series"]
    columns = {name: [item[name] for item in series] for name in ("id", "start", "y")}
    return {"horizon": 2, "columns": {**columns, "freq": "h", "channels": {"a": columns["y"]}}}


@pytest.mark.parametrize(
    ("model_class", "fields"), [(ForecastRequest, _rows_document()), (ColumnsRequest, _columns_document())]
)
def test_a_request_parsed_in_chunks_gives_the_same_result(
    model_class: Any, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = parsing.parse_json(orjson.dumps(fields))
    assert sum(len(counts) for _, counts in parsed.chunked_lists) > 20
    assert all(len(values) == sum(counts) for values, counts in parsed.chunked_lists)
    request = parsing.validate_fields(model_class, parsed)
    assert all(values == [] for values, _ in parsed.chunked_lists)  # freed in chunks after validation
    monkeypatch.setattr(chunked_json, "MIN_ARRAY_LENGTH", 1000)
    plain = model_class.model_validate(fields)
    histories = request.to_series_inputs() if isinstance(request, ColumnsRequest) else request.series
    expected = plain.to_series_inputs() if isinstance(plain, ColumnsRequest) else plain.series
    for history, expected_history in zip(histories, expected, strict=True):
        assert isinstance(history.y, np.ndarray)
        np.testing.assert_array_equal(history.y, np.array(expected_history.y, dtype=np.float64))
        assert {name: list(values) for name, values in history.covariates.items()} == expected_history.covariates
        assert set(history.channels) == set(expected_history.channels)
        assert (history.id, history.start, history.freq) == (
            expected_history.id,
            expected_history.start,
            expected_history.freq,
        )


def test_errors_of_a_request_parsed_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = _rows_document()
    for index in (1, 3, 4, 9, 12, 13, 19):
        fields["series"][index]["y"][index % 7] = "no number"
    fields["series"][2]["unknown"] = 1
    text = orjson.dumps(fields)
    with pytest.raises(ApiError) as chunked:
        parsing.validate_fields(ForecastRequest, parsing.parse_json(text))
    monkeypatch.setattr(chunked_json, "MIN_SPLIT_BYTES", len(text) + 1)
    with pytest.raises(ApiError) as at_once:
        parsing.validate_fields(ForecastRequest, parsing.parse_json(text))
    assert str(chunked.value) == str(at_once.value)
    assert (chunked.value.where, at_once.value.where) == ("series.1.y.1", "series.1.y.1")
    assert str(at_once.value).endswith("and 3 more.")


ARRAYS = st.tuples(st.integers(0, 4), st.integers(0, 9)).map(
    lambda shape: np.arange(np.prod(shape) * 1.0).reshape(shape)
)


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        SCALARS | ARRAYS | st.lists(st.integers(0, 9), max_size=30),
        lambda inner: st.lists(inner, max_size=9) | st.dictionaries(DIFFICULT_TEXTS, inner, max_size=5),
        max_leaves=30,
    )
)
def test_chunked_serialisation_equals_serialisation_at_once(value: Any) -> None:
    assert chunked_json.dumps(value) == orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
