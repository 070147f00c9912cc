"""API keys: authorization, storage of hashes, key rotation, and secrecy of keys."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serving.asgi import auth
from serving.asgi.auth import InvalidKeys, Keyring, build_keyring
from serving.settings import Settings
from tests.serving.conftest import AppClient, MakeClient, publish_stub, series_payload

GOOD_REQUEST = {"series": [series_payload()], "horizon": 2}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def reader_key(key_file: Path) -> str:
    return auth.create_key("reader", ["read"], key_file)


@pytest.fixture
def client_with_keys(slot_folder: Path, make_client: MakeClient, key_file: Path, reader_key: str) -> AppClient:
    publish_stub(slot_folder)
    return make_client(keys_file=key_file)


def bearer_header(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_a_key_is_long_and_random_and_only_its_hash_is_stored(key_file: Path) -> None:
    keys = [auth.create_key(name, ["read"], key_file) for name in ("a", "b")]
    text = key_file.read_text()
    assert len(set(keys)) == 2
    assert all(len(key) > 43 and key not in text and hash_key(key) in text for key in keys)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["a", "two words", "", "a\nb"])
def test_a_duplicate_or_invalid_name_creates_no_key(key_file: Path, name: str) -> None:
    auth.create_key("a", ["read"], key_file)
    before = key_file.read_text()
    with pytest.raises(InvalidKeys):
        auth.create_key(name, ["read"], key_file)
    with pytest.raises(InvalidKeys):
        auth.create_key("b", ["write"], key_file)
    assert key_file.read_text() == before


def test_existing_file_content_is_kept(key_file: Path) -> None:
    key_file.write_text(f"# ours\nold admin sha256:{hash_key('old')}  # until May")
    auth.create_key("new", ["read", "observe"], key_file)
    assert [(key.name, key.scopes) for key in auth.parse_keys(key_file.read_text(), source="")] == [
        ("old", {"admin"}),
        ("new", {"read", "observe"}),
    ]


@pytest.mark.parametrize("headers", [{}, bearer_header("wrong"), {"authorization": "Basic wrong"}, {"x-api-key": ""}])
@pytest.mark.parametrize(
    "path", ["/v1/forecast", "/v1/model", "/metrics", "/docs.json", "/livez/", "http://forecaster//livez", "/nowhere"]
)
def test_a_request_without_a_key_gets_a_standard_401(
    client_with_keys: AppClient, path: str, headers: dict[str, str]
) -> None:
    response = client_with_keys.post(path, json=GOOD_REQUEST, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]


def test_only_the_two_probes_are_public(client_with_keys: AppClient) -> None:
    assert [client_with_keys.get(path).status_code for path in ("/livez", "/readyz", "/LIVEZ", "/livez%2F")] == [
        200,
        200,
        401,
        401,
    ]


def test_a_key_is_accepted_in_either_header(client_with_keys: AppClient, reader_key: str) -> None:
    for headers in (bearer_header(reader_key), {"authorization": f"bearer  {reader_key} "}, {"x-api-key": reader_key}):
        assert client_with_keys.post("/v1/forecast", json=GOOD_REQUEST, headers=headers).status_code == 200
    for wrong in (reader_key[:-1], reader_key + "x", hash_key(reader_key), reader_key.upper(), f"{reader_key}\x00"):
        assert client_with_keys.post("/v1/forecast", json=GOOD_REQUEST, headers={"x-api-key": wrong}).status_code == 401
    assert client_with_keys.post("/nowhere", json=GOOD_REQUEST, headers=bearer_header(reader_key)).status_code == 404


def test_the_key_is_checked_before_the_body_is_read(client_with_keys: AppClient) -> None:
    async def chunks() -> object:
        raise AssertionError("the body must not be read")
        yield b""

    assert client_with_keys.post("/v1/forecast", content=chunks()).status_code == 401


@pytest.mark.parametrize(
    ("scopes", "statuses"), [(["read"], [200, 403]), (["observe"], [403, 200]), (["admin"], [200, 200])]
)
def test_a_key_grants_its_scopes_only(
    client_with_keys: AppClient, key_file: Path, scopes: list[str], statuses: list[int]
) -> None:
    key = auth.create_key("other", scopes, key_file)
    _wait_for_change(client_with_keys, key, rejected=401)
    assert [
        client_with_keys.get(path, headers=bearer_header(key)).status_code for path in ("/v1/model", "/metrics")
    ] == statuses


def _wait_for_change(client: AppClient, key: str, *, rejected: int) -> None:
    """Waits until a change of the key file takes effect."""
    deadline = time.monotonic() + 5
    while client.get("/v1/model", headers=bearer_header(key)).status_code == rejected:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _fast_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "RELOAD_INTERVAL_S", 0.01)


def test_keys_can_be_changed_while_the_server_runs(
    client_with_keys: AppClient, key_file: Path, reader_key: str
) -> None:
    second = auth.create_key("second", ["read"], key_file)
    _wait_for_change(client_with_keys, second, rejected=401)
    assert client_with_keys.get("/v1/model", headers=bearer_header(reader_key)).status_code == 200, (
        "both keys are valid"
    )
    key_file.write_text("".join(line for line in key_file.read_text().splitlines(keepends=True) if "second" in line))
    _wait_for_change(client_with_keys, reader_key, rejected=200)
    assert client_with_keys.get("/v1/model", headers=bearer_header(second)).status_code == 200


@pytest.mark.parametrize("text", ["nonsense", "", None])
def test_a_key_file_damaged_while_the_server_runs_changes_nothing(
    client_with_keys: AppClient, key_file: Path, reader_key: str, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    key_file.unlink() if text is None else key_file.write_text(text)
    time.sleep(0.02)
    assert client_with_keys.get("/v1/model", headers=bearer_header(reader_key)).status_code == 200
    assert client_with_keys.get("/v1/model", headers=bearer_header("wrong")).status_code == 401
    assert "the previous keys remain valid" in caplog.text


def test_keys_can_come_from_the_environment(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    lines = f"a read sha256:{hash_key('one')}; b admin sha256:{hash_key('two')}"
    settings = Settings.from_environment(
        {"FORECASTER_SERVING_KEYS": lines, "FORECASTER_SERVING_SLOT": str(slot_folder)}
    )
    assert Settings.from_environment(settings.to_environment()) == settings
    client = make_client(keys=lines)
    assert [client.get("/metrics", headers=bearer_header(key)).status_code for key in ("one", "two", lines)] == [
        403,
        200,
        401,
    ]


@pytest.mark.parametrize("text", ["", "# none", "a read sha256:12", "a write sha256:" + "0" * 64, "fck_secret", "\xff"])
def test_invalid_keys_are_rejected_and_never_repeated(key_file: Path, text: str) -> None:
    key_file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidKeys) as error:
        Keyring(file=key_file)
    assert "secret" not in str(error.value)


def test_a_public_address_requires_keys(key_file: Path, reader_key: str) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7"):
        with pytest.raises(InvalidKeys, match="Expected keys"):
            build_keyring(Settings(host=host))
        assert build_keyring(Settings(host=host, without_keys=True)) is None
        assert build_keyring(Settings(host=host, keys_file=key_file)) is not None
    assert build_keyring(Settings()) is build_keyring(Settings(host="::1")) is None


def run_module(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    package = Path(auth.__file__).parents[2]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FORECASTER")}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**inherited, **environment, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.integration
def test_the_server_does_not_start_on_a_public_address_without_keys(tmp_path: Path) -> None:
    result = run_module("serving", FORECASTER_SERVING_HOST="0.0.0.0", FORECASTER_SERVING_SLOT=str(tmp_path))
    assert result.returncode == 2
    assert "key new NAME" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.integration
def test_a_key_in_the_wrong_variable_is_not_printed(tmp_path: Path) -> None:
    for name in ("KEY", "KEYS"):
        result = run_module("serving", **{f"FORECASTER_SERVING_{name}": "fck_secret"})
        assert result.returncode == 2
        assert "fck_secret" not in result.stdout + result.stderr


@pytest.mark.integration
def test_a_key_created_on_the_command_line_is_accepted(key_file: Path) -> None:
    result = run_module(
        "pipelines.cli", "key", "new", "store", "--scope", "read", "--scope", "observe", "--keys", str(key_file)
    )
    assert result.returncode == 0, result.stderr
    key = result.stdout.strip()
    assert Keyring(file=key_file).authorize("observe", {b"x-api-key": key.encode()}) == "store"
    again = run_module("pipelines.cli", "key", "new", "store", "--keys", str(key_file))
    assert (again.returncode, again.stdout) == (2, "")


def test_no_key_is_ever_logged(
    client_with_keys: AppClient, reader_key: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        for headers in (
            bearer_header(reader_key),
            {"x-api-key": reader_key},
            bearer_header(f"{reader_key}x"),
            {"authorization": reader_key},
        ):
            for path in ("/v1/forecast", f"/v1/forecast?key={reader_key}", "/nowhere"):
                client_with_keys.post(path, json=GOOD_REQUEST, headers=headers)
                client_with_keys.post(path, content=b"{", headers=headers)
    messages = [
        record.getMessage() for record in caplog.records if not record.name.startswith("http")
    ]  # httpx is the client
    output = "".join([*messages, *capfd.readouterr()])
    assert '"key": "reader"' in output, "by name"
    assert reader_key not in output
    assert hash_key(reader_key) not in output


@pytest.mark.parametrize(
    ("fields", "host", "status"),
    [
        ({}, "localhost:3000", 200),
        ({}, "127.0.0.1", 200),
        ({}, "[::1]:3000", 200),
        ({}, "rebound.example", 421),
        ({}, "127.0.0.1.example", 421),
        ({}, "", 421),
        ({"allowed_hosts": "forecasts.example; other.example"}, "Forecasts.Example:80", 200),
        ({"allowed_hosts": "forecasts.example"}, "localhost", 421),
        ({"allowed_hosts": "*"}, "rebound.example", 200),
        ({"without_keys": True}, "rebound.example", 200),
    ],
)
def test_only_allowed_hosts_are_served(
    slot_folder: Path, make_client: MakeClient, fields: dict[str, Any], host: str, status: int
) -> None:
    publish_stub(slot_folder)
    client = make_client(**fields)
    response = client.get("/v1/model", headers={"host": host})
    assert response.status_code == status, response.text
    if status == 421:
        assert response.json()["error"]["code"] == "unknown_host"
        assert "FORECASTER_SERVING_ALLOWED_HOSTS" in response.text
    for path in ("/livez", "/readyz", "/metrics"):
        assert client.get(path, headers={"host": host}).status_code == 200, "probes use an IP address"


def test_a_server_with_keys_serves_any_host(slot_folder: Path, make_client: MakeClient, tmp_path: Path) -> None:
    publish_stub(slot_folder)
    key = auth.create_key("shop", ["read"], tmp_path / "keys")
    client = make_client(keys_file=tmp_path / "keys")
    assert client.get("/v1/model", headers={"host": "forecasts.example", "x-api-key": key}).status_code == 200
