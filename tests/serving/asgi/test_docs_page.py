"""The interactive documentation as it is served: our own files and those of Swagger UI, without a key, below any path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.asgi import assets, auth
from tests.serving.conftest import AppClient, MakeClient, publish_stub

DOCS_PATHS = [*(asset.path for asset in assets.load_docs_assets()), *assets.swagger_routes()]


def test_the_documentation_is_served_within_the_policy_of_the_page(client: AppClient) -> None:
    assert set(DOCS_PATHS) == {
        "/docs",
        "/docs/docs.css",
        "/docs/docs.js",
        "/docs/swagger-ui-bundle.js",
        "/docs/swagger-ui.css",
    }
    policy = client.get("/").headers["content-security-policy"]
    for path in DOCS_PATHS:
        response = client.get(path)
        assert (response.status_code, response.headers["content-security-policy"]) == (200, policy), path
        assert response.headers["content-type"] == assets.MEDIA_TYPES[Path(path).suffix or ".html"]
        assert client.get(path, headers={"if-none-match": response.headers["etag"]}).status_code == 304
    assert client.get("/docs/index.html").status_code == client.get("/docs/none.js").status_code == 404
    metrics = client.get("/metrics").text
    assert 'forecaster_requests_total{route="/docs",status="200"} 5.0' in metrics


def test_every_url_of_the_documentation_is_served(client: AppClient) -> None:
    urls = re.findall(r'(?:href|src)="([^"]+)"', client.get("/docs").text)
    assert "docs/swagger-ui-bundle.js" in urls
    for url in urls:
        assert client.get("/" + url.partition("#")[0].removeprefix("./")).status_code == 200, url


def test_the_page_and_the_documentation_link_to_each_other(client: AppClient) -> None:
    assert '<a href="docs">' in client.get("/").text
    assert '<a class="brand" href="./">' in client.get("/docs").text


def test_below_a_root_path_the_urls_are_absolute(slot_folder: Path, make_client: MakeClient) -> None:
    publish_stub(slot_folder)
    client = make_client(root_path="/apps/forecasts")
    for prefix in ("/apps/forecasts", ""):
        text = client.get(f"{prefix}/docs").text
        assert 'src="/apps/forecasts/docs/swagger-ui-bundle.js"' in text
        assert 'href="/apps/forecasts/docs.json"' in text
    assert 'href="/apps/forecasts/docs"' in client.get("/apps/forecasts").text
    assert client.get("/apps/forecasts/docs/swagger-ui.css").status_code == 200


def test_the_documentation_needs_no_key_but_the_description_of_the_api_does(
    slot_folder: Path, make_client: MakeClient, tmp_path: Path
) -> None:
    key = auth.create_key("reader", ["read"], tmp_path / "keys")
    client = make_client(keys_file=tmp_path / "keys")
    assert {client.get(path).status_code for path in DOCS_PATHS} == {200}
    for path in ("/docs.json", "/openapi.json", "/schema.json"):
        assert client.get(path).status_code == 401, path
        assert client.get(path, headers={"authorization": f"Bearer {key}"}).status_code == 200, path


def test_without_the_files_of_swagger_ui_the_error_names_the_document(
    client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "find_spec", lambda _: None)
    assets._load_swagger_file.cache_clear()
    response = client.get("/docs/swagger-ui.css")
    assert response.status_code == 404
    assert "/docs.json" in response.json()["error"]["message"]
    monkeypatch.undo()
    assert client.get("/docs/swagger-ui.css").status_code == 200


def test_the_documentation_has_no_inline_code() -> None:
    page = (assets.DOCS_FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|https?://", page)
    script = (assets.DOCS_FOLDER / "docs.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|\beval\(|new Function|(?<![\w.])fetch\(|https?://", script)
