"""The client that polls an MLflow server without MLflow: one request, MLflow's settings, and bounded responses."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from forecaster.errors import NoSuchModel, RegistryError
from forecaster.registry import rest_client
from forecaster.registry.rest_client import RestClient
from forecaster.registry.version import BundleVersion

VERSION = {"name": "sales", "version": "3", "run_id": "r", "tags": [{"key": "digest", "value": "d"}, {"key": "empty"}]}
Reply = tuple[int, dict[str, str], bytes]


class ScriptedServer(NamedTuple):
    """A server that sends the same reply to every request, and the requests it received."""

    uri: str
    requests: list[tuple[str, dict[str, str]]]


ServeReply = Callable[..., ScriptedServer]


@pytest.fixture
def serve_reply() -> Iterator[ServeReply]:
    servers: list[ThreadingHTTPServer] = []

    def start(
        status: int = 200, fields: Any = None, *, body: bytes | None = None, drip_s: float = 0, **headers: str
    ) -> ScriptedServer:
        content = (
            body if body is not None else json.dumps({"model_version": VERSION} if fields is None else fields).encode()
        )
        received: list[tuple[str, dict[str, str]]] = []

        class Scripted(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                received.append((self.path, dict(self.headers)))
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for byte in content if drip_s else b"":
                    time.sleep(drip_s)
                    try:
                        self.wfile.write(bytes([byte]))
                    except OSError:
                        return
                if not drip_s:
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Prints nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return ScriptedServer(f"http://127.0.0.1:{server.server_port}", received)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials, and an environment without proxies."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(rest_client, "getproxies", dict)
    return tmp_path


def connect(uri: str, **environ: str) -> RestClient:
    assert RestClient.supports(uri, environ)
    return RestClient.from_environment(uri, environ)


def test_the_version_of_an_alias_takes_one_request(serve_reply: ServeReply) -> None:
    server = serve_reply()
    assert connect(f"{server.uri}/below/").resolve("a b", "champion") == BundleVersion("sales", "3", "d", "r")
    [(path, headers)] = server.requests
    assert path == "/below/api/2.0/mlflow/registered-models/alias?name=a+b&alias=champion"
    assert "Authorization" not in headers


def test_credentials_are_those_of_mlflow(serve_reply: ServeReply, home: Path) -> None:
    server = serve_reply()
    user = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "p:w"}
    for environ in (user, {**user, "MLFLOW_TRACKING_TOKEN": "t"}, {"MLFLOW_TRACKING_TOKEN": "t\n"}):
        connect(server.uri, **environ).resolve("sales", "champion")
    (home / ".mlflow").mkdir()
    (home / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = file\nmlflow_tracking_password = a%b\n"
    )
    connect(server.uri, MLFLOW_WORKSPACE="team").resolve("sales", "champion")
    sent = [headers["Authorization"] for _, headers in server.requests]
    basic = ["Basic " + base64.b64encode(text).decode() for text in (b"me:p:w", b"file:a%b")]
    assert sent == [basic[0], basic[0], "Bearer t", basic[1]]
    assert server.requests[-1][1]["X-MLFLOW-WORKSPACE"] == "team"


@pytest.mark.parametrize(
    ("uri", "environ"),
    [
        ("sqlite:///mlflow.db", {}),
        ("postgresql+psycopg://host/name", {}),
        ("databricks", {}),
        ("http://me:word@host", {}),
        ("http://host", {"MLFLOW_TRACKING_AUTH": "kubernetes"}),
        ("http://host", {"MLFLOW_TRACKING_AWS_SIGV4": "true"}),
        ("http://host", {"NETRC": "/tmp/netrc"}),
    ],
)
def test_other_stores_and_settings_need_the_client_of_mlflow(uri: str, environ: dict[str, str]) -> None:
    assert not RestClient.supports(uri, environ)


def test_a_store_behind_a_proxy_needs_the_client_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_client, "getproxies", lambda: {"http": "http://proxy:3128"})
    monkeypatch.setattr(rest_client, "proxy_bypass", lambda host: host == "inside")
    assert not RestClient.supports("http://outside", {})
    assert RestClient.supports("http://inside", {})


def test_certificates_are_those_of_mlflow(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        connect("https://host", MLFLOW_TRACKING_SERVER_CERT_PATH=str(tmp_path / "missing.pem"))
    with pytest.raises(OSError):
        connect("https://host", MLFLOW_TRACKING_CLIENT_CERT_PATH=str(tmp_path / "missing.pem"))
    checked = connect("https://host")._context
    unchecked = connect("https://host", MLFLOW_TRACKING_INSECURE_TLS="true")._context
    assert checked is not None
    assert unchecked is not None
    assert (checked.verify_mode.name, unchecked.verify_mode.name) == ("CERT_REQUIRED", "CERT_NONE")


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Registered Model with name=sales not found"}),
        (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias champion not found."}),
    ],
)
def test_a_missing_model_or_alias_is_reported(serve_reply: ServeReply, status: int, fields: dict[str, str]) -> None:
    with pytest.raises(NoSuchModel, match="'sales' needs a version with the alias 'champion'"):
        connect(serve_reply(status, fields).uri).resolve("sales", "champion")


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [
        (401, b"You are not authenticated.", "the status 401"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}', r"403 \(Permission denied\)"),
        (500, b"<html>", "the status 500"),
        (200, b"<html>", "the status 200"),
        (200, b"[]", "the status 200"),
        (200, b'{"model_version": {}}', "found other fields"),
        (200, b'{"model_version": {"name": "a", "version": "1", "tags": 7}}', "found other fields"),
        (200, b'{"model_version": {"name": "a", "version": "1"}}', "was not registered by forecaster"),
        (200, b" " * (1 << 20) + b"{}", "more than 1048576 bytes"),
        (200, b"[" * 100_000, "the status 200"),
    ],
)
def test_unexpected_responses_are_registry_errors(
    serve_reply: ServeReply, status: int, content: bytes, expected: str
) -> None:
    with pytest.raises(RegistryError, match=expected):
        connect(serve_reply(status, body=content).uri).resolve("sales", "champion")


def test_redirects_stay_on_the_server(serve_reply: ServeReply) -> None:
    target = serve_reply()
    other_port = serve_reply(307, location=f"{target.uri}/elsewhere?name=sales")
    foreign = serve_reply(302, location=target.uri.replace("127.0.0.1", "localhost"))
    endless = serve_reply(302, location="/again")
    for server in (other_port, foreign, endless):
        with pytest.raises(RegistryError, match="it redirects to"):
            connect(server.uri, MLFLOW_TRACKING_TOKEN="t").resolve("sales", "champion")
    assert target.requests == [], "the token was sent to no other server"
    assert len(endless.requests) == 4


@pytest.mark.parametrize(
    ("address", "target", "is_same"),
    [
        ("http://host/a", "http://host/b", True),
        ("http://host/a", "https://host/a", True),
        ("http://host:5000/a", "https://host:5000/a", True),
        ("https://host/a", "https://host:443/a", True),
        ("https://host/a", "http://host/a", False),
        ("http://host:5000/a", "https://host/a", False),
        ("https://host/a", "https://host:8443/a", False),
        ("https://host/a", "https://host@other/a", False),
        ("http://host/a", "ftp://host/a", False),
    ],
)
def test_credentials_are_sent_to_the_same_server_alone(address: str, target: str, is_same: bool) -> None:
    assert rest_client._is_same_server(urlsplit(address), urlsplit(target)) == is_same


def test_tags_may_be_null(serve_reply: ServeReply) -> None:
    version = {"name": "sales", "version": 3, "tags": None}
    with pytest.raises(RegistryError):  # without a digest the version is none of ours
        connect(serve_reply(body=json.dumps({"model_version": version}).encode()).uri).resolve("sales", "champion")


def test_a_response_of_single_bytes_is_abandoned(serve_reply: ServeReply) -> None:
    client = RestClient(serve_reply(drip_s=0.02).uri, headers={}, limit_s=0.15)
    started_at = time.monotonic()
    with pytest.raises(RegistryError, match="its response was not complete after 0 s"):
        client.resolve("sales", "champion")
    assert time.monotonic() - started_at < 1.0


def test_credentials_are_not_in_messages() -> None:
    client = RestClient("http://127.0.0.1:9", headers={"Authorization": "Bearer s3cret\nx: y"})
    with pytest.raises(RegistryError) as error:
        client.resolve("sales", "champion")
    assert "s3cret" not in str(error.value)
