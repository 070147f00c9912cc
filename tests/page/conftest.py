"""A Chromium, the real application behind uvicorn in a thread, and a page that must not complain or ask anyone else."""

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

from forecaster.bundle import artifact
from serving.deployment.slot import LoadPredictor, Release, Slot, publish, staging
from serving.routes import app
from serving.settings import Settings
from tests.serving.conftest import load_stub, write_stub

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
# What a browser says of an answer that is an error: the page tells it, and so it is expected.
EXPECTED_CONSOLE_ERROR = "Failed to load resource: the server responded with a status of 4"
VIOLATION_SCRIPT = """
window.violations = [];
window.xss = 0;
document.addEventListener("securitypolicyviolation", (one) => violations.push(`${one.violatedDirective} ${one.blockedURI}`));
"""


def find_chromium() -> str | None:
    """The browser of this machine."""
    named = os.environ.get("FORECASTER_CHROMIUM")
    if named:
        return named
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(
    scope="module"
)  # its event loop runs in this thread as long as it is there: no other test could have one
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_chromium()
    if path is None:
        pytest.skip("no Chromium: neither FORECASTER_CHROMIUM nor one on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


def publish_stub_with_card(slot: Path, card: str, *, freq: str = "h") -> None:
    """A stub in the slot whose card says this."""
    with staging(slot) as draft:
        write_stub(draft / "bundle", freq=freq)
        (draft / "bundle" / "card.md").write_text(card)
        publish(
            slot,
            draft / "bundle",
            Release(name="stub", version="1", digest=artifact.compute_bundle_digest(draft / "bundle")),
        )


@contextmanager
def serve_application(slot_folder: Path, *, load: LoadPredictor = load_stub, **fields: Any) -> Iterator[str]:
    """The address of a running application."""
    uvicorn = pytest.importorskip("uvicorn")
    settings = Settings(slot=slot_folder, **fields)
    slot = Slot(slot_folder, load=load, reload_s=settings.reload_s)
    application = app.build_application(settings, slot=slot)
    slot.reload_if_changed()

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        await (application.routes if scope["type"] == "lifespan" else application.app)(scope, receive, send)

    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(
                front, log_level="error", lifespan="on", ws="none", loop="asyncio", timeout_graceful_shutdown=1
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{door.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An application that repeats the last value of hourly series, and takes few series at once."""
    slot = tmp_path_factory.mktemp("page") / "slot"
    publish_stub_with_card(slot, "# A stub\n\nRepeats the **last** value.\n")
    with serve_application(slot, max_series=60) as address:
        yield address


OpenPage = Callable[..., Any]


@pytest.fixture
def visit_page(browser: Any, url: str) -> Iterator[OpenPage]:
    """Opens the page; at the end, it must not have complained or asked another server."""
    contexts: list[Any] = []
    complaints: list[str] = []
    pages: list[Any] = []

    def open_page(address: str = url, **context: Any) -> Any:
        contexts.append(
            browser.new_context(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True, **context)
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.add_init_script(VIOLATION_SCRIPT)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((address + "/", "blob:", "data:")) else complaints.append(asked.url)
            ),
        )
        page.goto(address)
        page.wait_for_selector("#in-use:not(:empty)")
        pages.append(page)
        return page

    yield open_page
    seen = [page.evaluate("[violations, xss]") for page in pages]
    for context in contexts:
        context.close()
    assert seen == [[[], 0]] * len(pages)
    assert [said for said in complaints if not said.startswith(EXPECTED_CONSOLE_ERROR)] == []
