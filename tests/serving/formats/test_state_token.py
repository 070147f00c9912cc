"""States: a forecast from a state and new values is that of the whole history, and no state but ours is taken."""

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
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster.errors import BadState, StateOfOtherModel, StateTooLarge
from forecaster.prediction.predictor import Predictor
from forecaster.series import Series
from serving.formats.schema import CarriedSeries
from serving.formats.state_token import FORMAT, Model, Seal, issue, to_series
from serving.formats.timestamps import Style
from serving.settings import Settings
from serving.supervisor import _environment
from tests.factories import START, wave
from tests.forecaster.prediction.test_carry import COLUMNS, ENCODING, history, learned
from tests.serving.conftest import Client, MakeClient, publish_stub, series
from tests.serving.routes.test_openapi import faults, schema_of

KEY, OTHER = "first-key-" + "x" * 40, "second-key-" + "y" * 40
STEPS, HORIZON = 90, 5
MODEL, SEAL = Model("ab" * 32, ENCODING), Seal((KEY.encode(),), 2**18)
STYLE = Style("T", "s", "Z")


@pytest.fixture
def serve(slot_folder: Path, make_client: MakeClient) -> Callable[..., Client]:
    """Serves a network of random weights."""

    def start(predictor: Predictor | None = None, **settings: Any) -> Client:
        publish_stub(slot_folder)
        return make_client(load=lambda _: predictor or Predictor(learned()), **{"state_keys": KEY, **settings})

    return start


def asked(one: Series, *, until: int, since: int = 0, **fields: Any) -> dict[str, Any]:
    """Steps of a series as an item of a request, with what is known ahead."""
    y = [None if np.isnan(value) else value for value in one.y[since:until].tolist()]
    parts: dict[str, Any] = {"id": one.id, "y": y}
    if not since:
        parts |= {"start": f"{one.start.isoformat()}Z", "freq": one.freq}
    columns = {name: values[since : until + HORIZON].tolist() for name, values in one.covariates.items()}
    channels = {name: values[since:until].tolist() for name, values in one.channels.items()}
    return {**parts, "covariates": columns, "channels": channels, "static": dict(one.static), **fields}


def post(client: Client, *items: dict[str, Any], **ask: Any) -> Any:
    return client.post("/v1/forecast", json={"series": list(items), "horizon": HORIZON, "return_state": True, **ask})


def first(client: Client, *items: dict[str, Any], **ask: Any) -> Any:
    answer = post(client, *items, **ask)
    assert answer.status_code == 200, answer.text
    return answer.json()["forecasts"][0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reads": "history", "segment": 4, "decoder": "direct"},
        {"scaling": "level_season", "base": "seasonal_naive", "encoding": ENCODING, **COLUMNS},
        {"reads": "history", "cell": "lstm", "encoding": ENCODING, **COLUMNS},
    ],
)
def test_going_on_from_a_state_is_as_sending_the_whole_history(
    serve: Callable[..., Client], fields: dict[str, Any]
) -> None:
    client, whole, ask = serve(Predictor(learned(**fields))), history(), {"levels": [0.1, 0.9]}
    state, since, lengths = first(client, asked(whole, until=40), **ask)["state"], 40, []
    for until in (40, 41, 44, 60, 61, 90):
        found = first(client, asked(whole, since=since, until=until, state=state), **ask)
        expected = first(client, asked(whole, until=until), **ask)
        assert found["ds"] == expected["ds"]
        np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-5)
        for level in ("0.1", "0.9"):
            np.testing.assert_allclose(found["quantiles"][level], expected["quantiles"][level], rtol=1e-5, atol=1e-5)
        state, since = found["state"], until
        lengths.append(len(state))
    assert lengths[-1] < 1.2 * lengths[-2]


def test_samples_from_a_state_are_those_of_the_whole_history(serve: Callable[..., Client]) -> None:
    client, whole = serve(Predictor(learned(head={"kind": "gaussian"}))), replace(history(), covariates={}, channels={})
    state = first(client, asked(whole, until=80))["state"]
    found = first(client, asked(whole, since=80, until=90, state=state), samples=7, seed=3)
    np.testing.assert_allclose(
        found["samples"], first(client, asked(whole, until=90), samples=7, seed=3)["samples"], rtol=1e-5
    )


def test_a_blend_goes_on_from_a_state_too(serve: Callable[..., Client]) -> None:
    pytest.importorskip("statsforecast")
    weights = {"network": 0.4, "dynamic_optimized_theta": 0.6}
    client = serve(Predictor(replace(learned(blend=["dynamic_optimized_theta"]), blend=weights)))
    whole = Series("a", START, "h", wave(1400))
    state = first(client, asked(whole, until=1390))["state"]
    found = first(client, asked(whole, since=1390, until=1400, state=state))
    np.testing.assert_allclose(found["mean"], first(client, asked(whole, until=1400))["mean"], rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "stamp"),
    [
        ({}, "2026-01-01T05:00:00Z"),
        ({"start": "2026-01-01T03:00:00Z"}, "2026-01-01T05:00:00Z"),
        ({"start": "2026-01-01 04:00+01:00"}, "2026-01-01 06:00+01:00"),
        ({"ds": ["2026-01-01T03:00Z", "2026-01-01T04:00Z"], "freq": "h"}, "2026-01-01T05:00Z"),
        ({"y": []}, "2026-01-01T03:00:00Z"),
    ],
)
def test_stamps_follow_the_state_in_the_style_last_used(client: Client, fields: dict[str, Any], stamp: str) -> None:
    state = first(client, series())["state"]
    found = first(client, {"id": "a", "state": state, "y": [1.0, 2.0], **fields})
    assert found["ds"][0] == stamp
    assert (
        first(client, {"id": "a", "state": found["state"], "y": [1.0]})["ds"][0][11:13] == f"{int(stamp[11:13]) + 1:02}"
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
def test_what_does_not_follow_is_refused_beside_good_neighbours(
    slot_folder: Path, make_client: MakeClient, fields: dict[str, Any], code: str
) -> None:
    publish_stub(slot_folder)
    client = make_client(load=_with_static)
    state = first(client, series(static={"region": "north"}))["state"]
    item = {"id": "a", "state": state, "y": [1.0, 2.0], **fields}
    good, bad = post(client, series(), item).json()["forecasts"]
    assert "mean" in good
    assert bad["error"]["code"] == code, bad
    assert (post(client, item).status_code, post(client, item).json()["error"]["code"]) == (422, code)


def test_answers_with_states_are_as_documented_in_every_form(client: Client) -> None:
    document = client.get("/docs.json").json()
    state = first(client, series())["state"]
    columns = {"columns": {"id": ["a"], "start": ["2026-01-01"], "freq": "h", "y": [[1, 2, 4]]}, "horizon": 3}
    for content in ({"series": [series(), {"id": "a", "state": state, "y": [1, None]}], "horizon": 2}, columns):
        content = {**content, "return_state": True}
        asked_as = document["paths"]["/v1/forecast"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert faults(content, asked_as, document) == []
        answer = client.post("/v1/forecast", json=content)
        assert faults(answer.json(), schema_of(document, "post", "/v1/forecast", 200), document) == []
        assert "state" in answer.text
    lines = "\n".join(
        json.dumps(one) for one in ({"horizon": 1, "return_state": True}, {"id": "a", "state": state, "y": [5]})
    )
    told = client.post(
        "/v1/forecast", content=lines, headers={"content-type": "application/x-ndjson"}
    ).text.splitlines()
    assert json.loads(told[1])["mean"] == [5.0]
    assert "state" in json.loads(told[1])


def test_arrow_has_states_in_a_column(client: Client) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"id": ["a"], "start": ["2026-01-01T00:00:00Z"], "freq": ["h"], "y": [[1.0, 2.0, 4.0]]})
    table = table.replace_schema_metadata({b"forecast": json.dumps({"horizon": 2, "return_state": True}).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    kind = {"content-type": "application/vnd.apache.arrow.stream"}
    answer = client.post("/v1/forecast", content=sink.getvalue().to_pybytes(), headers=kind)
    [state] = pa.ipc.open_stream(answer.content).read_all()["state"].to_pylist()
    assert first(client, {"id": "a", "state": state, "y": [7.0]})["mean"] == [7.0] * HORIZON


def test_a_state_of_another_model_is_a_409_or_an_outcome_beside_others(
    slot_folder: Path, make_client: MakeClient
) -> None:
    publish_stub(slot_folder)
    client = make_client(state_keys=KEY)
    item = {"id": "a", "state": first(client, series())["state"], "y": [1.0]}
    publish_stub(slot_folder, version="2", shift=1.0)
    client.slot.check()
    answer = post(client, item, {**item})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "state_of_other_model")
    document = client.get("/docs.json").json()
    assert faults(answer.json(), schema_of(document, "post", "/v1/forecast", 409), document) == []
    good, bad = post(client, series(), item).json()["forecasts"]
    assert ("mean" in good, bad["error"]["code"]) == (True, "state_of_other_model")


def test_keys_rotate(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)

    def item(client: Client) -> dict[str, Any]:
        return {"id": "a", "state": first(client, series())["state"], "y": [1.0]}

    old, both, new = (make_client(state_keys=keys) for keys in (KEY, f"{OTHER};{KEY}", OTHER))
    assert [post(client, item(old)).status_code for client in (old, both, new)] == [200, 200, 422]
    assert [post(client, item(both)).status_code for client in (old, both, new)] == [422, 200, 200]


def test_without_a_key_every_start_makes_its_own_and_its_workers_share_it(
    slot_folder: Path, make_client: MakeClient, tmp_path: Path
) -> None:
    publish_stub(slot_folder)
    one, other = make_client(), make_client()
    item = {"id": "a", "state": first(one, series())["state"], "y": [1.0]}
    assert (post(one, item).status_code, post(other, item).status_code) == (200, 422)
    workers = Settings.read(_environment(Settings(), tmp_path)).state_keys
    assert len(workers) >= 32
    assert workers != Settings.read(_environment(Settings(), tmp_path)).state_keys
    assert Settings.read(_environment(Settings(state_keys=KEY), tmp_path)).state_keys == KEY
    assert KEY not in repr(Settings(state_keys=KEY))


@pytest.mark.parametrize("keys", ["short", f"{KEY};short", f"{KEY};", ";"])
def test_a_key_that_could_be_guessed_is_refused(keys: str) -> None:
    with pytest.raises(ValueError, match="32 characters"):
        Settings(state_keys=keys)


def carried() -> Series:
    return Predictor(learned(encoding=ENCODING, **COLUMNS)).carry(history())


TOKEN = issue(carried(), STYLE, model=MODEL, seal=SEAL)


def opened(token: str, *, model: Model = MODEL, seal: Seal = SEAL) -> Series:
    item = CarriedSeries(id="a", state=token, y=[])
    return to_series(item, model=model, seal=seal, horizon=HORIZON).series


def test_a_state_holds_what_was_carried() -> None:
    found, expected = opened(TOKEN), carried()
    np.testing.assert_array_equal(found.y, expected.y)
    assert (found.start, found.freq, found.static) == (expected.start, expected.freq, expected.static)
    np.testing.assert_array_equal(found.channels["heat"], expected.channels["heat"])
    np.testing.assert_array_equal(found.covariates["promo"], expected.covariates["promo"])
    known = np.array(["rain", "sun"])
    np.testing.assert_array_equal(
        found.covariates["sky"][:, None] == known, expected.covariates["sky"].astype(str)[:, None] == known
    )
    assert found.past is not None
    assert expected.past is not None
    np.testing.assert_array_equal(found.past.latest, expected.past.latest)
    assert (found.past.changes, found.past.counts) == (expected.past.changes, expected.past.counts)


@given(st.integers(0, len(TOKEN) - 1), st.text("ABCXYZabcxyz019-_=+/ \n", min_size=1, max_size=1))
def test_no_state_with_another_character_is_taken(place: int, character: str) -> None:
    altered = TOKEN[:place] + character + TOKEN[place + 1 :]
    if altered != TOKEN:
        with pytest.raises(BadState):
            opened(altered)


@given(st.integers(0, 8 * (len(TOKEN) * 3 // 4) - 1))
def test_no_state_with_another_bit_is_taken(bit: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(TOKEN + "=" * (-len(TOKEN) % 4)))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadState):
        opened(base64.urlsafe_b64encode(bytes(raw)).rstrip(b"=").decode())


@given(st.integers(0, len(TOKEN) - 1), st.booleans())
def test_no_part_of_a_state_is_taken(length: int, front: bool) -> None:
    with pytest.raises(BadState):
        opened(TOKEN[:length] if front else TOKEN[len(TOKEN) - length :])


@given(st.text(max_size=200))
def test_no_text_whatever_is_taken(text: str) -> None:
    with pytest.raises(BadState):
        opened(text)


def signed(body: bytes, *, form: bytes = FORMAT, packed: bytes | None = None, digest: str = MODEL.digest) -> str:
    """A state of our own key around anything."""
    raw = form + bytes.fromhex(digest) + (zlib.compress(body) if packed is None else packed)
    return base64.urlsafe_b64encode(raw + hmac.digest(KEY.encode(), raw, "sha256")).rstrip(b"=").decode()


def body_of(token: str) -> bytes:
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    return zlib.decompress(raw[len(FORMAT) + 32 : -32])


def with_number(value: float, *, from_end: int) -> bytes:
    numbers = bytearray(body_of(TOKEN))
    end = len(numbers) - 8 * from_end
    numbers[end : end + 8] = np.array([value]).tobytes()
    return bytes(numbers)


BODY = body_of(TOKEN)
STEPS_HELD = len(carried())


@pytest.mark.parametrize(
    "token",
    [
        signed(BODY, form=b"forecaster-state-2\n"),
        signed(with_number(np.inf, from_end=1)),
        signed(with_number(1e200, from_end=1)),
        signed(with_number(np.nan, from_end=4 + 2 * STEPS_HELD)),
        signed(with_number(np.inf, from_end=4 + 1)),
        signed(with_number(99.0, from_end=4 + STEPS_HELD + 1)),
        signed(BODY[:-8]),
        signed(BODY + bytes(8)),
        signed(BODY[:-3]),
        signed(b""),
        signed(b"\xff\xff\xff\xff{}"),
        signed(BODY.replace(b'"steps":', b'"stops":')),
        signed(BODY.replace(b'"steps":', b'"steps":-')),
        signed(bytes(2**23)),
        signed(BODY, packed=zlib.compress(BODY) + b"x"),
        signed(BODY, packed=zlib.compress(BODY)[:-5]),
        signed(BODY, packed=b"no zlib"),
    ],
)
def test_even_under_our_key_nothing_is_taken_that_cannot_be_used(token: str) -> None:
    assert np.isfinite(opened(signed(BODY)).y[-1]), "the way that these were made is the right one"
    with pytest.raises(BadState):
        opened(token)


def test_a_state_is_bounded_both_ways() -> None:
    small = Seal(SEAL.keys, len(TOKEN) - 1)
    with pytest.raises(StateTooLarge, match="series 'a'"):
        issue(carried(), STYLE, model=MODEL, seal=small)
    with pytest.raises(BadState):
        opened(TOKEN, seal=small)


def test_a_state_knows_its_model() -> None:
    with pytest.raises(StateOfOtherModel, match="abababababab"):
        opened(TOKEN, model=Model("cd" * 32, ENCODING))


def test_as_many_steps_are_read_from_a_state_however_long_the_history_was(serve: Callable[..., Client]) -> None:
    for fields in ({}, {"reads": "history"}):
        forecaster = learned(**fields)
        predictor, lengths, sizes = Predictor(forecaster), [], []
        client = serve(predictor)
        for steps in (100, 400, 1600):
            whole = Series("a", START, "h", wave(steps))
            state = first(client, asked(whole, until=steps))["state"]
            with _steps_read(predictor) as read:
                first(client, {"id": "a", "state": state, "y": [1.5]})
            lengths.append(sum(read))
            sizes.append(len(state))
        assert len(set(lengths)) == 1, lengths
        assert max(sizes) < 1.1 * min(sizes)


@contextmanager
def _steps_read(predictor: Predictor) -> Iterator[list[int]]:
    """Counts what the engine is shown, and what the recurrence of PyTorch reads."""
    read: list[int] = []
    engine = predictor.engine
    hook = predictor.network.recurrent.register_forward_pre_hook(lambda _, given: read.append(given[0].shape[1]))

    class Counting:
        draws = engine.draws

        def roll(self, known: Any, *, horizon: int, noise: Any = None) -> Any:
            read.append(known.values.shape[1])
            return engine.roll(known, horizon=horizon, noise=noise)

    predictor.engine = Counting()
    try:
        yield read
    finally:
        predictor.engine = engine
        hook.remove()


def _with_static(folder: Path) -> Any:
    from tests.factories import make_spec
    from tests.serving.conftest import LastValue, StubForecaster

    return LastValue(StubForecaster(spec=make_spec(static=["region"], context=3, min_history=3)))
