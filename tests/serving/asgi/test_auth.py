"""API keys: who is let in, what is kept of a key, and what never comes out."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.asgi import auth
from serving.asgi.auth import BadKeys, Keyring, keyring
from serving.settings import Settings
from tests.serving.conftest import Client, MakeClient, publish_stub, series

GOOD = {"series": [series()], "horizon": 2}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def reader(file: Path) -> str:
    return auth.new("reader", ["read"], file)


@pytest.fixture
def client(slot_folder: Path, make_client: MakeClient, file: Path, reader: str) -> Client:
    publish_stub(slot_folder)
    return make_client(keys_file=file)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_key_is_long_and_random_and_only_its_hash_is_kept(file: Path) -> None:
    made = [auth.new(name, ["read"], file) for name in ("a", "b")]
    text = file.read_text()
    assert len(set(made)) == 2
    assert all(len(key) > 43 and key not in text and digest(key) in text for key in made)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["a", "two words", "", "a\nb"])
def test_a_name_that_is_taken_or_is_none_makes_no_key(file: Path, name: str) -> None:
    auth.new("a", ["read"], file)
    before = file.read_text()
    with pytest.raises(BadKeys):
        auth.new(name, ["read"], file)
    with pytest.raises(BadKeys):
        auth.new("b", ["write"], file)
    assert file.read_text() == before


def test_what_stood_in_the_file_stays(file: Path) -> None:
    file.write_text(f"# ours\nold admin sha256:{digest('old')}  # until May")
    auth.new("new", ["read", "observe"], file)
    assert [(key.name, key.scopes) for key in auth.parse(file.read_text(), source="")] == [
        ("old", {"admin"}),
        ("new", {"read", "observe"}),
    ]


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), {"authorization": "Basic wrong"}, {"x-api-key": ""}])
@pytest.mark.parametrize(
    "path", ["/v1/forecast", "/v1/model", "/metrics", "/docs.json", "/livez/", "http://forecaster//livez", "/nowhere"]
)
def test_who_has_no_key_gets_a_401_in_the_one_shape(client: Client, path: str, headers: dict[str, str]) -> None:
    answer = client.post(path, json=GOOD, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]


def test_only_the_two_probes_are_open(client: Client) -> None:
    assert [client.get(path).status_code for path in ("/livez", "/readyz", "/LIVEZ", "/livez%2F")] == [
        200,
        200,
        401,
        401,
    ]


def test_a_key_is_sent_either_way(client: Client, reader: str) -> None:
    for headers in (bearer(reader), {"authorization": f"bearer  {reader} "}, {"x-api-key": reader}):
        assert client.post("/v1/forecast", json=GOOD, headers=headers).status_code == 200
    for wrong in (reader[:-1], reader + "x", digest(reader), reader.upper(), f"{reader}\x00"):
        assert client.post("/v1/forecast", json=GOOD, headers={"x-api-key": wrong}).status_code == 401
    assert client.post("/nowhere", json=GOOD, headers=bearer(reader)).status_code == 404


def test_a_body_is_not_read_before_the_key_is(client: Client) -> None:
    async def chunks() -> object:
        raise AssertionError("nobody reads it")
        yield b""

    assert client.post("/v1/forecast", content=chunks()).status_code == 401


@pytest.mark.parametrize(
    ("scopes", "statuses"), [(["read"], [200, 403]), (["observe"], [403, 200]), (["admin"], [200, 200])]
)
def test_a_key_opens_what_its_scopes_say(client: Client, file: Path, scopes: list[str], statuses: list[int]) -> None:
    key = auth.new("other", scopes, file)
    _wait(client, key, refused=401)
    assert [client.get(path, headers=bearer(key)).status_code for path in ("/v1/model", "/metrics")] == statuses


def _wait(client: Client, key: str, *, refused: int) -> None:
    """Until a change of the file has been noticed."""
    deadline = time.monotonic() + 5
    while client.get("/v1/model", headers=bearer(key)).status_code == refused:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "LOOK_S", 0.01)


def test_keys_are_changed_while_the_server_runs(client: Client, file: Path, reader: str) -> None:
    second = auth.new("second", ["read"], file)
    _wait(client, second, refused=401)
    assert client.get("/v1/model", headers=bearer(reader)).status_code == 200, "both are good for a while"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "second" in line))
    _wait(client, reader, refused=200)
    assert client.get("/v1/model", headers=bearer(second)).status_code == 200


@pytest.mark.parametrize("text", ["nonsense", "", None])
def test_a_file_that_is_spoilt_while_the_server_runs_changes_nothing(
    client: Client, file: Path, reader: str, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file.unlink() if text is None else file.write_text(text)
    time.sleep(0.02)
    assert client.get("/v1/model", headers=bearer(reader)).status_code == 200
    assert client.get("/v1/model", headers=bearer("wrong")).status_code == 401
    assert "the keys stay as they were" in caplog.text


def test_keys_come_from_the_environment_too(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    lines = f"a read sha256:{digest('one')}; b admin sha256:{digest('two')}"
    settings = Settings.read({"FORECASTER_SERVING_KEYS": lines, "FORECASTER_SERVING_SLOT": str(slot_folder)})
    assert Settings.read(settings.environment()) == settings
    client = make_client(keys=lines)
    assert [client.get("/metrics", headers=bearer(key)).status_code for key in ("one", "two", lines)] == [403, 200, 401]


@pytest.mark.parametrize("text", ["", "# none", "a read sha256:12", "a write sha256:" + "0" * 64, "fck_secret", "\xff"])
def test_keys_that_cannot_be_read_are_refused_and_never_repeated(file: Path, text: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadKeys) as refused:
        Keyring(file=file)
    assert "secret" not in str(refused.value)


def test_an_address_that_others_reach_needs_keys(file: Path, reader: str) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7"):
        with pytest.raises(BadKeys, match="Expected keys"):
            keyring(Settings(host=host))
        assert keyring(Settings(host=host, without_keys=True)) is None
        assert keyring(Settings(host=host, keys_file=file)) is not None
    assert keyring(Settings()) is keyring(Settings(host="::1")) is None


def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    package = Path(auth.__file__).parents[2]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FORECASTER")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**ours, **environment, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_server_does_not_start_without_keys_where_others_reach_it(tmp_path: Path) -> None:
    done = run("serving", FORECASTER_SERVING_HOST="0.0.0.0", FORECASTER_SERVING_SLOT=str(tmp_path))
    assert done.returncode == 2
    assert "key new NAME" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_in_the_wrong_variable_is_not_shown(tmp_path: Path) -> None:
    for name in ("KEY", "KEYS"):
        done = run("serving", **{f"FORECASTER_SERVING_{name}": "fck_secret"})
        assert done.returncode == 2
        assert "fck_secret" not in done.stdout + done.stderr


def test_the_command_line_makes_a_key_that_a_server_takes(file: Path) -> None:
    done = run("pipelines.cli", "key", "new", "store", "--scope", "read", "--scope", "observe", "--keys", str(file))
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    assert Keyring(file=file).admit("observe", {b"x-api-key": key.encode()}) == "store"
    again = run("pipelines.cli", "key", "new", "store", "--keys", str(file))
    assert (again.returncode, again.stdout) == (2, "")


def test_no_key_is_ever_logged(
    client: Client, reader: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        for headers in (bearer(reader), {"x-api-key": reader}, bearer(f"{reader}x"), {"authorization": reader}):
            for path in ("/v1/forecast", f"/v1/forecast?key={reader}", "/nowhere"):
                client.post(path, json=GOOD, headers=headers)
                client.post(path, content=b"{", headers=headers)
    ours = [
        record.getMessage() for record in caplog.records if not record.name.startswith("http")
    ]  # httpx is the client
    told = "".join([*ours, *capfd.readouterr()])
    assert '"key": "reader"' in told, "by name"
    assert reader not in told
    assert digest(reader) not in told
