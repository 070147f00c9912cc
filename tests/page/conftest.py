"""A Chromium, the real application behind uvicorn in a thread, and a page without errors or requests to other servers."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from serving.deployment.slot import LoadPredictor, Slot
from serving.routes import app
from serving.settings import Settings
from tests.serving.conftest import load_stub, publish_stub

CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_MS = 8000
# The browser logs this for every error response. The page shows these errors, so the log entry is expected.
EXPECTED_CONSOLE_ERROR = "Failed to load resource: the server responded with a status of 4"
VIOLATION_SCRIPT = """
window.violations = [];
window.xss = 0;
document.addEventListener("securitypolicyviolation", (event) => {
  violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


def find_chromium() -> str | None:
    """Returns the path of the Chromium to use, or None."""
    named = os.environ.get("FORECASTER_CHROMIUM")
    if named:
        return named
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# Module scope: Playwright's event loop occupies this thread while the browser is open, and no other test could run one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium: FORECASTER_CHROMIUM is not set, and none is on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@contextmanager
def serve_application(
    slot_folder: Path, *, load: LoadPredictor = load_stub, slot_class: type[Slot] = Slot, **fields: Any
) -> Iterator[str]:
    """Runs the application and yields its address."""
    uvicorn = pytest.importorskip("uvicorn")
    settings = Settings(slot=slot_folder, **fields)
    slot = slot_class(slot_folder, load=load, reload_s=settings.reload_s)
    application = app.build_application(settings, slot=slot)
    slot.reload_if_changed()

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await (application.routes if scope["type"] == "lifespan" else application.app)(scope, receive, send)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(
                dispatch, log_level="error", lifespan="on", ws="none", loop="asyncio", timeout_graceful_shutdown=1
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An application that repeats the last value of hourly series and accepts at most 60 series per request."""
    slot = tmp_path_factory.mktemp("page") / "slot"
    publish_stub(slot, data="shops", series=40, left_out=2)
    with serve_application(slot, max_series=60) as address:
        yield address


OpenPage = Callable[..., Any]


@pytest.fixture
def visit_page(browser: Any, url: str) -> Iterator[OpenPage]:
    """Opens the page; fails at the end if it logged errors, violated its policy, or sent a request to another server."""
    contexts: list[Any] = []
    problems: list[str] = []
    pages: list[Any] = []

    def open_page(address: str = url, **context: Any) -> Any:
        contexts.append(
            browser.new_context(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True, **context)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.add_init_script(VIOLATION_SCRIPT)
        page.on(
            "console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((address + "/", "blob:", "data:")) else problems.append(request.url)
            ),
        )
        page.goto(address)
        page.wait_for_selector("#deployed-model:not(:empty)")
        pages.append(page)
        return page

    yield open_page
    violations = [page.evaluate("[violations, xss]") for page in pages]
    for context in contexts:
        context.close()
    assert violations == [[[], 0]] * len(pages)
    assert [text for text in problems if not text.startswith(EXPECTED_CONSOLE_ERROR)] == []
