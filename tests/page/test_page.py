"""Both views in a browser: model, API keys, untrusted text, color schemes, widths, accessibility."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serving.asgi import auth
from serving.routes.accuracy import AccuracyResponse
from tests.page.conftest import OpenPage, serve_application
from tests.page.test_forecast_view import GOOD, paste_table, request_forecast, wait_for_forecast
from tests.serving.conftest import publish_stub

pytestmark = pytest.mark.integration

XSS_PAYLOAD = "<img src=x onerror='xss=1'>"
ACCURACY_RESPONSE = {
    "model": None,
    "since": "2026-01-01T00:00:00Z",
    "until": "2026-02-01T00:00:00Z",
    "forecasts": 1200,
    "scored": 800,
    "overall": {"n": 800, "mae": 2.5, "bias": -0.1, "mase": 0.8, "coverage": {"0.8": 0.79}, "width": {"0.8": 6.0}},
    "by_horizon": [
        {
            "step": step,
            "n": 100,
            "mae": 2.0 + step / 8,
            "bias": 0.0,
            "mase": None,
            "coverage": {"0.8": 0.8},
            "width": {},
        }
        for step in range(1, 9)
    ],
}


def test_the_model_and_its_accuracy_are_shown(visit_page: OpenPage) -> None:
    # The mocked response has the schema of the service.
    AccuracyResponse.model_validate_json(json.dumps(ACCURACY_RESPONSE))
    page = visit_page()
    page.route("**/v1/accuracy", lambda route: route.fulfill(json=ACCURACY_RESPONSE))
    page.click("#nav-model")
    page.wait_for_selector(".facts")
    assert page.title() == "Model · forecaster"
    card = dict(zip(*(page.locator(f".facts {tag}").all_text_contents() for tag in ("dt", "dd")), strict=True))
    assert card["Model"] == "stub, version 1"
    assert (card["Training data"], card["Series"], card["Shortest history"]) == (
        "shops",
        "40 (2 more were too short)",
        "3 steps",
    )
    # The stub returns quantiles without a calibration.
    assert card["Prediction intervals"].startswith("the quantiles of the network itself")
    assert "Blend" not in card
    assert json.loads(page.text_content(".model-view pre"))["name"] == "stub"
    assert page.locator(".bars .bar").count() == 8
    table = page.locator("[aria-label='Accuracy by step ahead as a table'] tbody tr").all_text_contents()
    assert len(table) == 9
    assert table[0].startswith("all8002.5-0.10.879%")
    page.click("#nav-forecast")
    assert page.is_visible("#controls")


def fulfill_with_error(route: Any, _: Any, *, status: int, content: str) -> None:
    route.fulfill(status=status, body=content)


def test_a_server_without_a_ledger_shows_no_error(visit_page: OpenPage) -> None:
    page = visit_page()
    responses = {
        "does not record": (404, "ledger_off"),
        "may not read": (403, "forbidden"),
        "is not available": (404, "odd"),
    }
    for note, (status, code) in responses.items():
        content = json.dumps({"error": {"code": code, "message": "Expected a ledger.", "where": None}})
        page.route("**/v1/accuracy", partial(fulfill_with_error, status=status, content=content))
        page.click("#nav-forecast")
        with page.expect_response("**/v1/accuracy"):
            page.click("#nav-model")
        page.wait_for_selector(f".empty-note:has-text('{note}')")
        assert page.locator(".message").count() == 0


def test_foreign_text_is_escaped(visit_page: OpenPage, tmp_path: Path) -> None:
    scores = {XSS_PAYLOAD: {XSS_PAYLOAD: 1.0}}
    publish_stub(tmp_path / "slot", data=XSS_PAYLOAD, data_digest="<script>xss=1</script>", backtest=scores)
    with serve_application(tmp_path / "slot") as address:
        page = visit_page(address)
        paste_table(page, GOOD.replace("shop", f'"{XSS_PAYLOAD}"') + '"<script>xss=1</script>",2026-01-01T00:00,1\n')
        page.wait_for_selector("#result:not([hidden])")
        request_forecast(page)
        assert page.text_content("#result-title") == XSS_PAYLOAD
        for fold in ("#table-fold", "#code-fold"):
            page.click(f"{fold} summary")
        page.select_option("#series", index=1)
        page.wait_for_selector("#messages .message")
        page.click("#nav-model")
        page.wait_for_selector(".facts")
        assert page.text_content("#model-body").count(XSS_PAYLOAD) == 3
        assert page.locator("main :is(script, iframe), #model-body :is(img, a)").count() == 0
        assert page.locator("img").count() == 1, "only the logo is an image"


def test_the_page_works_with_api_keys(visit_page: OpenPage, tmp_path: Path) -> None:
    publish_stub(tmp_path / "slot")
    key = auth.create_key("reader", ["read"], tmp_path / "keys")
    with serve_application(tmp_path / "slot", keys_file=tmp_path / "keys") as address:
        page = visit_page(address)
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        assert page.text_content("#deployed-model") == "API key required"
        paste_table(page, GOOD)
        page.wait_for_selector("#result:not([hidden])")
        page.click("#run-forecast")
        page.wait_for_selector("#messages .message")
        message = page.text_content("#messages")
        assert "API key required" in message
        assert re.search(r"Request[0-9a-f]{16}", message), "the request id, which the log of the service contains"
        assert page.evaluate("document.activeElement.id") == "key"
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector("#deployed-model b")
        request_forecast(page)
        page.click("#copy-curl")
        page.wait_for_selector("#action-status:text-is('Copied as curl.')")
        command = page.evaluate("navigator.clipboard.readText()")
        assert "$FORECASTER_KEY" in command
        assert key not in command + page.content() + "".join(addresses)
        stored = page.evaluate(
            "[Object.values({...sessionStorage}), Object.values({...localStorage}), document.cookie]"
        )
        assert stored == [[key], [], ""]
        page.reload()
        page.wait_for_selector("#deployed-model b")
        page.click("#key-toggle")
        page.click("#key-clear")
        page.wait_for_selector("#deployed-model:text-is('API key required')")
        assert page.evaluate("sessionStorage.length") == 0


def relative_luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2) of rgb(r, g, b)."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast_ratio(first: str, second: str) -> float:
    darker, lighter = sorted([relative_luminance(first), relative_luminance(second)])
    return (lighter + 0.05) / (darker + 0.05)


CSS_COLOR_NAMES = (
    "background card text text-muted border-strong accent on-accent accent-strong accent-subtle history error error-subtle "
    "warning warning-subtle"
)
READ_COLORS_SCRIPT = """(names) => {
  const probe = document.body.appendChild(document.createElement("i"));
  return Object.fromEntries(names.split(" ").map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  }));
}"""
TEXT_PAIRS = [
    *(
        (text, background)
        for text in ("text", "text-muted", "accent-strong")
        for background in ("background", "card", "accent-subtle")
    ),
    *((text, "error-subtle") for text in ("text", "text-muted", "error")),
    ("accent", "card"),
    ("accent", "background"),
    ("on-accent", "accent"),
    ("on-accent", "accent-strong"),
    ("warning", "warning-subtle"),
]
SHAPE_PAIRS = [
    ("border-strong", "card"),
    ("border-strong", "background"),
    ("history", "card"),
    ("accent", "card"),
    ("warning", "card"),
]


def test_colours_have_sufficient_contrast(visit_page: OpenPage) -> None:
    page = visit_page()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (relative_luminance(background) < 0.1) == (scheme == "dark")
        colors: dict[str, str] = page.evaluate(READ_COLORS_SCRIPT, CSS_COLOR_NAMES)
        text_contrasts = {pair: contrast_ratio(*(colors[name] for name in pair)) for pair in TEXT_PAIRS}
        assert {pair: value for pair, value in text_contrasts.items() if value < 4.5} == {}, "WCAG 1.4.3, AA"
        shape_contrasts = {pair: contrast_ratio(*(colors[name] for name in pair)) for pair in SHAPE_PAIRS}
        assert {pair: value for pair, value in shape_contrasts.items() if value < 3} == {}, "WCAG 1.4.11"


def test_nothing_overflows_the_page(visit_page: OpenPage) -> None:
    page = visit_page(viewport={"width": 1280, "height": 780})
    page.route("**/v1/accuracy", lambda route: route.fulfill(json=ACCURACY_RESPONSE))
    page.click("#example-empty")
    wait_for_forecast(page)
    for fold in ("#table-fold", "#code-fold"):
        page.click(f"{fold} summary")
    for link in ("#nav-forecast", "#nav-model"):
        page.click(link)
        for width in (1280, 700, 360):
            page.set_viewport_size({"width": width, "height": 780})
            page.wait_for_timeout(50)
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_is_accessible(visit_page: OpenPage) -> None:
    page = visit_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0, (
        "the link is visible while it has the focus"
    )
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.click("#example-empty")
    wait_for_forecast(page)
    unlabeled: list[Any] = (
        page.evaluate("""() => [...document.querySelectorAll("input, select, textarea, button, progress")]
      .filter((field) => !(field.labels?.length || field.textContent.trim() || field.ariaLabel
        || field.getAttribute("aria-labelledby")))
      .map((field) => field.outerHTML)""")
    )
    assert unlabeled == []
    duplicate_ids = page.evaluate(
        "[...document.querySelectorAll('[id]')].map((element) => element.id).filter((id, i, ids) => ids.indexOf(id) !== i)"
    )
    assert duplicate_ids == []
    snapshot = page.locator("body").aria_snapshot()
    for landmark in ("banner", 'navigation "Views"', "main", "contentinfo"):
        assert landmark in snapshot
    assert page.locator("h1:visible").all_text_contents() == ["Forecast a series"]
