"""The files of the web page as they are served: headers, caching, and no files outside the list."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from serving.asgi import assets, auth
from tests.serving.conftest import AppClient, MakeClient, publish_stub

ASSET_PATHS = [asset.path for asset in assets.load_assets()]


def test_every_file_in_the_folder_is_served_and_listed(client: AppClient) -> None:
    assert {file.name for file in assets.PAGE_FOLDER.iterdir() if file.is_file()} == {
        path.removeprefix("/page/") for path in ASSET_PATHS if path != "/"
    } | {"index.html"}
    for path in ASSET_PATHS:
        response = client.get(path)
        assert response.status_code == 200
        name = "index.html" if path == "/" else path.removeprefix("/page/")
        assert response.content == (assets.PAGE_FOLDER / name).read_bytes()
        assert response.headers["content-type"] == assets.MEDIA_TYPES[Path(name).suffix]


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_the_headers_restrict_the_page_to_its_own_resources(client: AppClient, path: str) -> None:
    headers = client.get(path).headers
    rules = dict(rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
        "form-action": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers.get_list("cache-control") == ["no-cache"]
    assert client.get("/livez").headers.get_list("cache-control") == ["no-store"]


def test_a_cached_file_is_not_sent_again(client: AppClient) -> None:
    first = client.get("/page/main.js")
    again = client.get("/page/main.js", headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"] != client.get("/page/csv.js").headers["etag"]
    assert "content-security-policy" in again.headers
    assert client.get("/page/main.js", headers={"if-none-match": '"other"'}).status_code == 200


def test_files_are_compressed_if_accepted(client: AppClient) -> None:
    plain = client.get("/page/style.css", headers={"accept-encoding": "identity"})
    compressed = client.get("/page/style.css", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert compressed.headers["content-encoding"] == "gzip"
    assert compressed.content == plain.content, "the client decompressed it"
    assert int(compressed.headers["content-length"]) < len(plain.content) / 2
    assert plain.headers["vary"] == compressed.headers["vary"] == "accept-encoding"
    assert all(gzip.decompress(asset.gzip_body) == asset.body for asset in assets.load_assets())


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/index.html", "/page/none.js", "/page/../settings.py", "/page/%2e%2e/settings.py", "/page//main.js",
     "/page/..%2fsettings.py", "/page/main.js/", "/page/MAIN.JS", "/page/%2Fetc%2Fpasswd", "/favicon.ico"],
)  # fmt: skip
def test_an_unlisted_file_is_not_found(client: AppClient, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_only_get_and_head_are_allowed(client: AppClient) -> None:
    response = client.post("/", json={})
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert client.request("HEAD", "/").content == b""


def test_the_page_needs_no_key_but_forecasts_do(slot_folder: Path, make_client: MakeClient, tmp_path: Path) -> None:
    publish_stub(slot_folder)
    auth.create_key("reader", ["read"], tmp_path / "keys")
    client = make_client(keys_file=tmp_path / "keys")
    assert {client.get(path).status_code for path in ASSET_PATHS} == {200}
    assert client.post("/v1/forecast", json={}).status_code == client.get("/page/none.js").status_code == 401


def test_all_files_share_one_metrics_route(client: AppClient) -> None:
    for path in [*ASSET_PATHS, "/page/none.js"]:
        client.get(path)
    text = client.get("/metrics").text
    routes = set(re.findall(r'forecaster_requests_total\{route="([^"]+)"', text))
    assert routes == {"/page"}
    assert f'forecaster_requests_total{{route="/page",status="200"}} {len(ASSET_PATHS)}.0' in text


def test_the_page_uses_no_external_resources_and_no_inline_code() -> None:
    for file in filter(Path.is_file, assets.PAGE_FOLDER.iterdir()):
        text = file.read_text(encoding="utf-8")
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s\"'`]+", text) == [], file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file.name
        )
    page = (assets.PAGE_FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


def test_all_modules_are_preloaded() -> None:
    scripts = {file.name for file in assets.PAGE_FOLDER.glob("*.js")} - {"main.js"}
    worker_modules = {"csv-worker.js", "csv.js", "fill-gaps.js"}  # loaded by the web worker
    page = (assets.PAGE_FOLDER / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'rel="modulepreload" href="page/([a-z-]+\.js)"', page)) == scripts - worker_modules
