"""State tokens: a forecast from a token and new values equals that of the full history; other tokens are rejected."""

from __future__ import annotations

import base64
import hmac
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster.bundle.pretrained.base import base_predictor
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.engines.engine import Engine, RolloutInput
from forecaster.errors import BadState, StateOfOtherModel, StateTooLarge
from forecaster.prediction.engine_choice import choose_engine
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from serving.formats.schema import ContinuedSeries
from serving.formats.state_payload import decode_payload, encode_payload
from serving.formats.state_token import TOKEN_FORMAT, ModelReference, TokenSigner, issue_token, parse_token_series
from serving.formats.timestamps import TimestampStyle
from serving.settings import Settings
from serving.supervisor import _server_environment
from tests.factories import START, make_wave
from tests.forecaster.prediction.test_carry import COLUMNS, ENCODING, make_history, make_model
from tests.serving.conftest import AppClient, MakeClient, publish_stub, series_payload
from tests.serving.routes.test_openapi import response_schema, schema_violations

pytestmark = pytest.mark.integration

KEY, OTHER_KEY = "first-key-" + "x" * 40, "second-key-" + "y" * 40
STEPS, HORIZON = 90, 5
MODEL, SIGNER = ModelReference("ab" * 32, ENCODING, make_model().spec), TokenSigner((KEY.encode(),), 2**18)
TIMESTAMP_STYLE = TimestampStyle("T", "s", "Z")


@pytest.fixture
def serve_model(slot_folder: Path, make_client: MakeClient) -> Callable[..., AppClient]:
    """Serves a network with random weights."""

    def make(predictor: Predictor | None = None, **settings: Any) -> AppClient:
        publish_stub(slot_folder)
        return make_client(load=lambda _: predictor or Predictor(make_model()), **{"state_keys": KEY, **settings})

    return make


def series_request(full_series: Series, *, end: int, start: int = 0, **fields: Any) -> dict[str, Any]:
    """Returns steps `start` to `end` of a series as an item of a request, with the future covariates."""
    y = [None if np.isnan(value) else value for value in full_series.y[start:end].tolist()]
    item: dict[str, Any] = {"id": full_series.id, "y": y}
    if not start:
        item |= {"start": f"{full_series.start.isoformat()}Z", "freq": full_series.freq}
    covariates = {name: values[start : end + HORIZON].tolist() for name, values in full_series.covariates.items()}
    channels = {name: values[start:end].tolist() for name, values in full_series.channels.items()}
    return {**item, "covariates": covariates, "channels": channels, "static": dict(full_series.static), **fields}


def post_forecast(client: AppClient, *items: dict[str, Any], **options: Any) -> Any:
    return client.post(
        "/v1/forecast", json={"series": list(items), "horizon": HORIZON, "return_state": True, **options}
    )


def first_forecast(client: AppClient, *items: dict[str, Any], **options: Any) -> Any:
    response = post_forecast(client, *items, **options)
    assert response.status_code == 200, response.text
    return response.json()["forecasts"][0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reads": "history", "segment": 4, "decoder": "direct"},
        {"scaling": "level_season", "base": "seasonal_naive", "encoding": ENCODING, **COLUMNS},
        {"reads": "history", "cell": "lstm", "encoding": ENCODING, **COLUMNS},
    ],
)
def test_resuming_from_a_state_token_equals_sending_the_full_history(
    serve_model: Callable[..., AppClient], fields: dict[str, Any]
) -> None:
    client, full_series, options = serve_model(Predictor(make_model(**fields))), make_history(), {"levels": [0.1, 0.9]}
    if "encoding" not in fields:
        full_series = replace(full_series, covariates={}, static={}, channels={})
    state, start, lengths = first_forecast(client, series_request(full_series, end=40), **options)["state"], 40, []
    for end in (40, 41, 44, 60, 61, 90):
        forecast = first_forecast(client, series_request(full_series, start=start, end=end, state=state), **options)
        expected = first_forecast(client, series_request(full_series, end=end), **options)
        assert forecast["ds"] == expected["ds"]
        np.testing.assert_allclose(forecast["mean"], expected["mean"], rtol=1e-5)
        for level in ("0.1", "0.9"):
            np.testing.assert_allclose(forecast["quantiles"][level], expected["quantiles"][level], rtol=1e-5, atol=1e-5)
        state, start = forecast["state"], end
        lengths.append(len(state))
    assert lengths[-1] < 1.2 * lengths[-2]


def test_samples_from_a_state_token_equal_those_of_the_full_history(serve_model: Callable[..., AppClient]) -> None:
    client, full_series = (
        serve_model(Predictor(make_model(head={"kind": "gaussian"}))),
        replace(make_history(), covariates={}, static={}, channels={}),
    )
    state = first_forecast(client, series_request(full_series, end=80))["state"]
    forecast = first_forecast(client, series_request(full_series, start=80, end=90, state=state), samples=7, seed=3)
    np.testing.assert_allclose(
        forecast["samples"],
        first_forecast(client, series_request(full_series, end=90), samples=7, seed=3)["samples"],
        rtol=1e-5,
    )


def test_a_blend_resumes_from_a_state_token(serve_model: Callable[..., AppClient]) -> None:
    pytest.importorskip("statsforecast")
    weights = {"network": 0.4, "dynamic_optimized_theta": 0.6}
    client = serve_model(Predictor(replace(make_model(blend=["dynamic_optimized_theta"]), blend_weights=weights)))
    full_series = Series("a", START, "h", make_wave(1400))
    state = first_forecast(client, series_request(full_series, end=1390))["state"]
    forecast = first_forecast(client, series_request(full_series, start=1390, end=1400, state=state))
    np.testing.assert_allclose(
        forecast["mean"], first_forecast(client, series_request(full_series, end=1400))["mean"], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "timestamp"),
    [
        ({}, "2026-01-01T05:00:00Z"),
        ({"start": "2026-01-01T03:00:00Z"}, "2026-01-01T05:00:00Z"),
        ({"start": "2026-01-01 04:00+01:00"}, "2026-01-01 06:00+01:00"),
        ({"ds": ["2026-01-01T03:00Z", "2026-01-01T04:00Z"], "freq": "h"}, "2026-01-01T05:00Z"),
        ({"y": []}, "2026-01-01T03:00:00Z"),
    ],
)
def test_timestamps_after_a_state_token_use_the_latest_style(
    client: AppClient, fields: dict[str, Any], timestamp: str
) -> None:
    state = first_forecast(client, series_payload())["state"]
    forecast = first_forecast(client, {"id": "a", "state": state, "y": [1.0, 2.0], **fields})
    assert forecast["ds"][0] == timestamp
    assert (
        first_forecast(client, {"id": "a", "state": forecast["state"], "y": [1.0]})["ds"][0][11:13]
        == f"{int(timestamp[11:13]) + 1:02}"
    )


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"start": "2026-01-01T02:00:00Z"}, "irregular_stamps"),
        ({"start": "2026-01-01T04:00:00Z"}, "irregular_stamps"),
        ({"start": "2026-01-01T03:00:00"}, "bad_stamp"),
        ({"start": 3}, "bad_stamp"),
        ({"ds": ["2026-01-01T03:00:00Z"]}, "bad_stamp"),
        ({"ds": ["2026-01-01T03:00:00Z", "2026-01-01T05:00:00Z"]}, "irregular_stamps"),
        ({"ds": ["2026-01-01T03:00:00Z", "2026-01-01T04:00:00Z"], "start": "2026-01-01T03:00:00Z"}, "bad_stamp"),
        ({"freq": "D"}, "frequency_mismatch"),
        ({"freq": "H"}, "frequency_unknown"),
        ({"static": {"region": "south"}}, "static_changes"),
        ({"id": "b"}, "bad_state"),
        ({"state": "nonsense"}, "bad_state"),
        ({"state": ""}, "bad_state"),
        ({"covariates": {"x": []}, "y": []}, "covariate_unknown"),
        ({"channels": {"x": [1.0]}}, "covariate_unknown"),
    ],
)
def test_values_that_do_not_follow_the_state_are_rejected_beside_good_neighbours(
    slot_folder: Path, make_client: MakeClient, fields: dict[str, Any], code: str
) -> None:
    publish_stub(slot_folder)
    client = make_client(load=_load_static_stub)
    state = first_forecast(client, series_payload(static={"region": "north"}))["state"]
    item = {"id": "a", "state": state, "y": [1.0, 2.0], **fields}
    good, bad = post_forecast(client, series_payload(), item).json()["forecasts"]
    assert "mean" in good
    assert bad["error"]["code"] == code, bad
    assert (post_forecast(client, item).status_code, post_forecast(client, item).json()["error"]["code"]) == (422, code)


def test_responses_with_states_conform_to_the_document_in_every_format(client: AppClient) -> None:
    document = client.get("/docs.json").json()
    state = first_forecast(client, series_payload())["state"]
    content = {
        "series": [series_payload(), {"id": "a", "state": state, "y": [1, None]}],
        "horizon": 2,
        "return_state": True,
    }
    request_schema = document["paths"]["/v1/forecast"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema_violations(content, request_schema, document) == []
    response = client.post("/v1/forecast", json=content)
    assert schema_violations(response.json(), response_schema(document, "post", "/v1/forecast", 200), document) == []
    assert "state" in response.text
    lines = "\n".join(
        json.dumps(line) for line in ({"horizon": 1, "return_state": True}, {"id": "a", "state": state, "y": [5]})
    )
    response_lines = client.post(
        "/v1/forecast", content=lines, headers={"content-type": "application/x-ndjson"}
    ).text.splitlines()
    assert json.loads(response_lines[1])["mean"] == [5.0]
    assert "state" in json.loads(response_lines[1])


def test_arrow_has_a_state_column(client: AppClient) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"id": ["a"], "start": ["2026-01-01T00:00:00Z"], "freq": ["h"], "y": [[1.0, 2.0, 4.0]]})
    table = table.replace_schema_metadata({b"forecast": json.dumps({"horizon": 2, "return_state": True}).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    headers = {"content-type": "application/vnd.apache.arrow.stream"}
    response = client.post("/v1/forecast", content=sink.getvalue().to_pybytes(), headers=headers)
    [state] = pa.ipc.open_stream(response.content).read_all()["state"].to_pylist()
    assert first_forecast(client, {"id": "a", "state": state, "y": [7.0]})["mean"] == [7.0] * HORIZON


def test_a_state_of_another_model_is_a_409_or_an_outcome_beside_others(
    slot_folder: Path, make_client: MakeClient
) -> None:
    publish_stub(slot_folder)
    client = make_client(state_keys=KEY)
    item = {"id": "a", "state": first_forecast(client, series_payload())["state"], "y": [1.0]}
    publish_stub(slot_folder, version="2", shift=1.0)
    client.slot.reload_if_changed()
    response = post_forecast(client, item, {**item})
    assert (response.status_code, response.json()["error"]["code"]) == (409, "state_of_other_model")
    document = client.get("/docs.json").json()
    assert schema_violations(response.json(), response_schema(document, "post", "/v1/forecast", 409), document) == []
    good, bad = post_forecast(client, series_payload(), item).json()["forecasts"]
    assert ("mean" in good, bad["error"]["code"]) == (True, "state_of_other_model")


def test_keys_rotate(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)

    def item(client: AppClient) -> dict[str, Any]:
        return {"id": "a", "state": first_forecast(client, series_payload())["state"], "y": [1.0]}

    old_client, rotating_client, new_client = (
        make_client(state_keys=keys) for keys in (KEY, f"{OTHER_KEY};{KEY}", OTHER_KEY)
    )
    assert [
        post_forecast(client, item(old_client)).status_code for client in (old_client, rotating_client, new_client)
    ] == [200, 200, 422]
    assert [
        post_forecast(client, item(rotating_client)).status_code for client in (old_client, rotating_client, new_client)
    ] == [422, 200, 200]


def test_without_a_configured_key_every_start_generates_one_for_all_its_workers(
    slot_folder: Path, make_client: MakeClient, tmp_path: Path
) -> None:
    publish_stub(slot_folder)
    client, other_client = make_client(), make_client()
    item = {"id": "a", "state": first_forecast(client, series_payload())["state"], "y": [1.0]}
    assert (post_forecast(client, item).status_code, post_forecast(other_client, item).status_code) == (200, 422)
    worker_keys = Settings.from_environment(_server_environment(Settings(), tmp_path)).state_keys
    assert len(worker_keys) >= 32
    assert worker_keys != Settings.from_environment(_server_environment(Settings(), tmp_path)).state_keys
    assert Settings.from_environment(_server_environment(Settings(state_keys=KEY), tmp_path)).state_keys == KEY
    assert KEY not in repr(Settings(state_keys=KEY))


@pytest.mark.parametrize("keys", ["short", f"{KEY};short", f"{KEY};", ";"])
def test_a_weak_key_is_rejected(keys: str) -> None:
    with pytest.raises(ValueError, match="32 characters"):
        Settings(state_keys=keys)


def make_truncated_history() -> Series:
    return Predictor(make_model(encoding=ENCODING, **COLUMNS)).truncate_history(make_history())


STATE_TOKEN = issue_token(make_truncated_history(), TIMESTAMP_STYLE, model=MODEL, signer=SIGNER)


def open_token(token: str, *, model: ModelReference = MODEL, signer: TokenSigner = SIGNER) -> Series:
    item = ContinuedSeries(id="a", state=token, y=[])
    return parse_token_series(item, model=model, signer=signer, horizon=HORIZON).series


def test_a_state_token_contains_the_truncated_history() -> None:
    series, expected = open_token(STATE_TOKEN), make_truncated_history()
    np.testing.assert_array_equal(series.y, expected.y)
    assert (series.start, series.freq, series.static) == (expected.start, expected.freq, expected.static)
    np.testing.assert_array_equal(series.channels["heat"], expected.channels["heat"])
    np.testing.assert_array_equal(series.covariates["promo"], expected.covariates["promo"])
    labels = np.array(["rain", "sun"])
    np.testing.assert_array_equal(
        series.covariates["sky"][:, None] == labels, expected.covariates["sky"].astype(str)[:, None] == labels
    )
    assert series.history_summary is not None
    assert expected.history_summary is not None
    np.testing.assert_array_equal(
        series.history_summary.last_season_values, expected.history_summary.last_season_values
    )
    assert (series.history_summary.change_sums, series.history_summary.change_counts) == (
        expected.history_summary.change_sums,
        expected.history_summary.change_counts,
    )


@given(st.integers(0, len(STATE_TOKEN) - 1), st.text("ABCXYZabcxyz019-_=+/ \n", min_size=1, max_size=1))
def test_a_state_token_with_a_changed_character_is_rejected(position: int, character: str) -> None:
    altered = STATE_TOKEN[:position] + character + STATE_TOKEN[position + 1 :]
    if altered != STATE_TOKEN:
        with pytest.raises(BadState):
            open_token(altered)


@given(st.integers(0, 8 * (len(STATE_TOKEN) * 3 // 4) - 1))
def test_a_state_token_with_a_changed_bit_is_rejected(bit: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(STATE_TOKEN + "=" * (-len(STATE_TOKEN) % 4)))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadState):
        open_token(base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode())


@given(st.integers(0, len(STATE_TOKEN) - 1), st.booleans())
def test_a_truncated_state_token_is_rejected(length: int, front: bool) -> None:
    with pytest.raises(BadState):
        open_token(STATE_TOKEN[:length] if front else STATE_TOKEN[len(STATE_TOKEN) - length :])


@given(st.text(max_size=200))
def test_arbitrary_text_is_rejected_as_a_state_token(text: str) -> None:
    with pytest.raises(BadState):
        open_token(text)


def sign_body(
    body: bytes, *, version: bytes = TOKEN_FORMAT, compressed: bytes | None = None, digest: str = MODEL.digest
) -> str:
    """Returns a token with any body, signed with the valid key."""
    raw = version + bytes.fromhex(digest) + (zlib.compress(body) if compressed is None else compressed)
    return base64.urlsafe_b64encode(raw + hmac.digest(KEY.encode(), raw, "sha256")).rstrip(b"=").decode()


def token_body(token: str) -> bytes:
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    return zlib.decompress(raw[len(TOKEN_FORMAT) + 32 : -32])


def replace_number(value: float, *, from_end: int) -> bytes:
    numbers = bytearray(token_body(STATE_TOKEN))
    end = len(numbers) - 8 * from_end
    numbers[end : end + 8] = np.array([value]).tobytes()
    return bytes(numbers)


TOKEN_BODY = token_body(STATE_TOKEN)
STEPS_IN_TOKEN = len(make_truncated_history())


@pytest.mark.parametrize(
    "token",
    [
        sign_body(TOKEN_BODY, version=b"forecaster-state-2\n"),
        sign_body(replace_number(np.inf, from_end=1)),
        sign_body(replace_number(1e200, from_end=1)),
        sign_body(replace_number(np.nan, from_end=4 + 2 * STEPS_IN_TOKEN)),
        sign_body(replace_number(np.inf, from_end=4 + 1)),
        sign_body(replace_number(99.0, from_end=4 + STEPS_IN_TOKEN + 1)),
        sign_body(TOKEN_BODY[:-8]),
        sign_body(TOKEN_BODY + bytes(8)),
        sign_body(TOKEN_BODY[:-3]),
        sign_body(b""),
        sign_body(b"\xff\xff\xff\xff{}"),
        sign_body(TOKEN_BODY.replace(b'"steps":', b'"stops":')),
        sign_body(TOKEN_BODY.replace(b'"steps":', b'"steps":-')),
        sign_body(bytes(2**23)),
        sign_body(TOKEN_BODY, compressed=zlib.compress(TOKEN_BODY) + b"x"),
        sign_body(TOKEN_BODY, compressed=zlib.compress(TOKEN_BODY)[:-5]),
        sign_body(TOKEN_BODY, compressed=b"no zlib"),
    ],
)
def test_an_unusable_state_is_rejected_even_with_a_valid_signature(token: str) -> None:
    assert np.isfinite(open_token(sign_body(TOKEN_BODY)).y[-1]), "the unchanged body is accepted"
    with pytest.raises(BadState):
        open_token(token)


def test_the_size_of_a_state_is_limited_when_issued_and_when_read() -> None:
    small_signer = TokenSigner(SIGNER.keys, len(STATE_TOKEN) - 1)
    with pytest.raises(StateTooLarge, match="series 'a'"):
        issue_token(make_truncated_history(), TIMESTAMP_STYLE, model=MODEL, signer=small_signer)
    with pytest.raises(BadState):
        open_token(STATE_TOKEN, signer=small_signer)


def test_a_state_token_is_bound_to_its_model() -> None:
    with pytest.raises(StateOfOtherModel, match="abababababab"):
        open_token(STATE_TOKEN, model=MODEL._replace(digest="cd" * 32))


def test_the_number_of_steps_read_from_a_state_does_not_depend_on_the_history_length(
    serve_model: Callable[..., AppClient],
) -> None:
    for fields in ({}, {"reads": "history"}):
        fitted_model = make_model(**fields)
        predictor = Predictor(fitted_model, engine=StepCountingEngine(choose_engine(fitted_model)))
        step_counts, sizes = [], []
        client = serve_model(predictor)
        for steps in (100, 400, 1600):
            full_series = Series("a", START, "h", make_wave(steps))
            state = first_forecast(client, series_request(full_series, end=steps))["state"]
            with _count_steps_read(predictor) as steps_read:
                first_forecast(client, {"id": "a", "state": state, "y": [1.5]})
            step_counts.append(sum(steps_read))
            sizes.append(len(state))
        assert len(set(step_counts)) == 1, step_counts
        assert max(sizes) < 1.1 * min(sizes)


class StepCountingEngine:
    """Counts the steps that an engine reads, with one entry for each call."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.can_sample = engine, engine.can_sample
        self.steps_read: list[int] = []

    def roll_out(self, inputs: RolloutInput, *, horizon: int, noise: Any = None) -> Any:
        self.steps_read.append(inputs.values.shape[1])
        return self._engine.roll_out(inputs, horizon=horizon, noise=noise)


@contextmanager
def _count_steps_read(predictor: Predictor) -> Iterator[list[int]]:
    """Yields the numbers of steps that the engine and the recurrence of PyTorch read, one entry for each call."""
    assert isinstance(predictor.engine, StepCountingEngine)
    steps_read = predictor.engine.steps_read = []
    hook = predictor.network.recurrent.register_forward_pre_hook(
        lambda _, arguments: steps_read.append(arguments[0].shape[1])
    )
    try:
        yield steps_read
    finally:
        hook.remove()


def _load_static_stub(folder: Path) -> Any:
    from tests.factories import make_spec
    from tests.serving.conftest import LastValuePredictor, StubModel

    return LastValuePredictor(StubModel(spec=make_spec(static=["region"], context=3, min_history=3)))


def test_the_recurrent_state_of_a_running_scale_survives_a_payload() -> None:
    y = 50 + np.arange(1500.0) % 7
    series = Series("a", pd.Timestamp("2010-01-01"), "D", y)
    history = base_predictor("D", horizon=48).truncate_history(series)
    style = TimestampStyle("T", "D", "")
    decoded = decode_payload(encode_payload(history, style, encoding=EMPTY_ENCODING), encoding=EMPTY_ENCODING).series
    assert history.history_summary is not None
    assert decoded.history_summary is not None
    for step, [arrays] in history.history_summary.rollout_states.items():
        [restored] = decoded.history_summary.rollout_states[step]
        assert restored.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(restored[name], array)
