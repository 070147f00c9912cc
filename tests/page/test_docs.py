"""The interactive documentation in a browser: it shows every route and sends an example, with a key, below a root path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.asgi import auth
from serving.routes.openapi import ROUTES
from tests.page.conftest import TIMEOUT_MS, VIOLATION_SCRIPT, serve_application
from tests.serving.conftest import publish_stub

pytestmark = pytest.mark.integration


@pytest.fixture
def docs_page(browser: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page with a narrow window, and the list of its problems: errors, violations of the policy, requests elsewhere."""
    context = browser.new_context(color_scheme="dark", viewport={"width": 480, "height": 900})
    page, problems = context.new_page(), []
    page.set_default_timeout(TIMEOUT_MS)
    page.add_init_script(VIOLATION_SCRIPT)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page, problems
    problems += page.evaluate("violations")
    context.close()
    assert [problem for problem in problems if not problem.startswith("data:")] == []


def test_a_key_opens_the_documentation_and_an_example_is_answered(
    docs_page: tuple[Any, list[str]], tmp_path: Path
) -> None:
    page, _ = docs_page
    publish_stub(tmp_path / "slot", freq="MS")
    key = auth.create_key("reader", ["read"], tmp_path / "keys")
    with serve_application(tmp_path / "slot", keys_file=tmp_path / "keys", root_path="/apps/forecasts") as address:
        page.goto(f"{address}/apps/forecasts/docs")
        page.fill("#key", key)
        page.click("#key-form button")
        page.wait_for_selector(".opblock")
        assert page.locator(".opblock").count() == len(ROUTES)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"

        page.click("#operations-Forecasts-post_v1_forecast .opblock-summary")
        with page.expect_response("**/apps/forecasts/v1/forecast") as response:
            page.click(".execute")
        assert response.value.status == 200
        assert response.value.request.headers["x-api-key"] == key
        page.wait_for_selector(".live-responses-table")
        assert '"ward 7"' in page.inner_text(".live-responses-table")
