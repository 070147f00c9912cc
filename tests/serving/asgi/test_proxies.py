"""The service behind a reverse proxy: below a path that the proxy removes or keeps, with the client's address in a header."""

from __future__ import annotations

import json
import logging
import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from serving.asgi.proxies import find_client
from serving.settings import Settings
from tests.serving.conftest import AppClient, MakeClient, publish_stub, series_payload

PROXIES = (ip_network("10.0.0.0/8"), ip_network("::1"))
REQUEST = {"series": [series_payload()], "horizon": 2}


@pytest.fixture
def client_below_path(slot_folder: Path, make_client: MakeClient) -> AppClient:
    publish_stub(slot_folder)
    return make_client(root_path="/apps/forecasts/")


@pytest.mark.parametrize("prefix", ["", "/apps/forecasts"])
def test_page_api_and_document_work_behind_a_proxy_that_removes_or_keeps_the_prefix(
    client_below_path: AppClient, prefix: str
) -> None:
    assert client_below_path.post(f"{prefix}/v1/forecast", json=REQUEST).status_code == 200
    for path in ("/v1/model", "/readyz", "/metrics", "/page/main.js", "/"):
        assert client_below_path.get(prefix + path).status_code == 200, path
    document = client_below_path.get(f"{prefix}/docs.json").json()
    assert document["servers"] == [{"url": "/apps/forecasts"}]
    assert "/v1/forecast" in document["paths"]
    page = client_below_path.get(f"{prefix}/").text
    urls = re.findall(r'(?:href|src)="([^"#][^"]*)"', page)
    assert len(urls) > 20
    for url in urls:
        assert url.startswith("/apps/forecasts/"), url
        assert client_below_path.get(url).status_code == 200
        assert client_below_path.get(url.removeprefix("/apps/forecasts")).status_code == 200


def test_the_page_is_served_without_the_last_slash_of_the_prefix(client_below_path: AppClient) -> None:
    assert client_below_path.get("/apps/forecasts").text == client_below_path.get("/").text


@pytest.mark.parametrize(
    "path", ["/apps/forecasts2/livez", "/apps/livez", "/apps/forecasts/apps/forecasts/livez", "/x"]
)
def test_a_path_that_only_resembles_the_prefix_is_unknown(client_below_path: AppClient, path: str) -> None:
    assert client_below_path.get(path).status_code == 404


def test_a_prefix_that_equals_a_path_of_the_service_hides_none(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client(root_path="/v1")
    assert client.get("/v1/model").json()["model"] == client.get("/v1/v1/model").json()["model"]


def test_keys_are_required_below_the_prefix_too(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client(root_path="/forecasts", keys=f"shop read sha256:{'0' * 64}")
    assert client.post("/forecasts/v1/forecast", json=REQUEST).status_code == 401
    assert client.get("/forecasts/readyz").status_code == 200


def test_without_a_root_path_the_page_has_relative_urls_and_the_document_no_server(client: AppClient) -> None:
    page = client.get("/").text
    assert re.findall(r'(?:href|src)="/', page) == []
    assert 'src="page/main.js"' in page
    assert "servers" not in client.get("/docs.json").json()


@pytest.mark.parametrize("script", sorted(Path("serving/page").glob("*.js")), ids=lambda path: path.name)
def test_no_script_has_a_url_that_depends_on_the_root(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert re.findall(r"""["'`]/page/|location\.origin""", text) == []
    if script.name != "api.js":
        assert re.findall(r"(?<![\w.])fetch\(", text) == []


@pytest.mark.parametrize("root_path", ["forecasts", "//host", "/a//b", "/a?b", "/a/../b", "/a b", '/a"b', "/%2e"])
def test_an_invalid_root_path_is_rejected(root_path: str) -> None:
    with pytest.raises(ValidationError, match="Expected a path such as"):
        Settings(root_path=root_path)


def test_a_root_path_of_one_slash_is_the_root() -> None:
    assert Settings(root_path="/").root_path == ""


@pytest.mark.parametrize("proxies", ["proxy.example", "10.0.0.0/33", "10.0.0.1,10.0.0.2"])
def test_invalid_proxies_are_rejected(proxies: str) -> None:
    with pytest.raises(ValidationError, match="Expected addresses or networks"):
        Settings(proxies=proxies)


def test_addresses_and_networks_of_proxies_are_read() -> None:
    networks = Settings(proxies="10.0.0.5; 10.1.2.3/16;::1").proxy_networks
    assert networks == (ip_network("10.0.0.5"), ip_network("10.1.0.0/16"), ip_network("::1"))


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("192.0.2.9", [("x-forwarded-for", "203.0.113.7")], "192.0.2.9"),  # the peer is no proxy
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [("x-forwarded-for", "203.0.113.7")], "203.0.113.7"),
        ("::ffff:10.0.0.1", [("x-forwarded-for", "203.0.113.7")], "203.0.113.7"),
        ("::1", [("x-forwarded-for", "203.0.113.7")], "203.0.113.7"),
        (
            "10.0.0.1",
            [("x-forwarded-for", "6.6.6.6, 203.0.113.7, 10.0.0.2")],
            "203.0.113.7",
        ),  # the first one is invented
        ("10.0.0.1", [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "203.0.113.7")], "203.0.113.7"),
        ("10.0.0.1", [("x-forwarded-for", "203.0.113.7:5678")], "203.0.113.7"),
        ("10.0.0.1", [("x-forwarded-for", "[2001:db8::7]:5678")], "2001:db8::7"),
        ("10.0.0.1", [("x-forwarded-for", "2001:db8::7")], "2001:db8::7"),
        ("10.0.0.1", [("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3"),  # a client in the proxies' network
        ("10.0.0.1", [("x-forwarded-for", "6.6.6.6, nonsense")], "10.0.0.1"),
        ("10.0.0.1", [("x-forwarded-for", "6.6.6.6, nonsense, 10.0.0.2")], "10.0.0.2"),
        ("10.0.0.1", [("forwarded", 'for=6.6.6.6, For="[2001:db8::7]:47";proto=https;by=10.0.0.1')], "2001:db8::7"),
        ("10.0.0.1", [("forwarded", "proto=https; for=203.0.113.7")], "203.0.113.7"),
        ("10.0.0.1", [("forwarded", "for=6.6.6.6, proto=https")], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", "proto=https"), ("x-forwarded-for", "203.0.113.7")], "203.0.113.7"),
        ("10.0.0.1", [("forwarded", "for=unknown")], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", "for=_hidden")], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", "for=203.0.113.7"), ("x-forwarded-for", "203.0.113.7")], "203.0.113.7"),
        ("10.0.0.1", [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "203.0.113.7")], "10.0.0.1"),  # one is invented
        ("not an address", [("x-forwarded-for", "203.0.113.7")], "not an address"),
    ],
)
def test_the_client_is_the_last_address_that_a_proxy_reports(
    peer: str, headers: list[tuple[str, str]], client: str
) -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    assert find_client(peer, encoded, PROXIES) == client


@pytest.mark.parametrize(
    ("proxies", "logged"), [("", "127.0.0.1"), ("10.0.0.0/8", "127.0.0.1"), ("127.0.0.1", "203.0.113.7")]
)
def test_the_access_log_has_the_forwarded_address_only_from_a_configured_proxy(
    slot_folder: Path, make_client: MakeClient, caplog: pytest.LogCaptureFixture, proxies: str, logged: str
) -> None:
    publish_stub(slot_folder)
    client = make_client(proxies=proxies)
    with caplog.at_level(logging.INFO, logger="serving.access"):
        client.get("/livez", headers={"x-forwarded-for": "203.0.113.7"})
    [line] = [record.getMessage() for record in caplog.records if record.name == "serving.access"]
    assert json.loads(line)["client"] == logged
