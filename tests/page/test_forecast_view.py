"""The forecast view in a browser: read data, forecast, inspect values, download and copy."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from tests.page.conftest import OpenPage

pytestmark = pytest.mark.integration

HOURS = [f"2026-01-01T{hour:02}:00" for hour in range(24)]
GOOD = "unique_id,ds,y\n" + "".join(f"shop,{ds},{index}.5\n" for index, ds in enumerate(HOURS))


def paste_table(page: Any, text: str) -> None:
    page.fill("#paste", text)


def wait_for_forecast(page: Any) -> None:
    """Waits until a forecast is drawn. A flat line has no height, so the browser considers it hidden."""
    page.wait_for_selector("#chart .forecast", state="attached")


def request_forecast(page: Any) -> None:
    page.click("#run-forecast")
    wait_for_forecast(page)


def next_request_body(page: Any) -> dict[str, Any]:
    """Clicks the forecast button and returns the body of the request."""
    with page.expect_request("**/v1/forecast") as request:
        page.click("#run-forecast")
    body: dict[str, Any] = request.value.post_data_json
    return body


def csv_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_the_example_can_be_forecast_and_downloaded(visit_page: OpenPage, tmp_path: Path) -> None:
    page = visit_page()
    page.click("#example-empty")
    wait_for_forecast(page)
    assert page.locator("#chart .band").count() == 2
    assert page.locator(".legend li").all_text_contents() == ["history", "forecast", "80% interval", "95% interval"]
    assert "24 hours ahead by stub, version 1" in page.text_content("#result-summary")

    with page.expect_download() as download:
        page.click("#save-csv")
    download.value.save_as(tmp_path / "forecast.csv")
    rows = csv_rows((tmp_path / "forecast.csv").read_text())
    assert list(rows[0]) == ["unique_id", "ds", "mean", "0.025", "0.1", "0.9", "0.975"]
    assert [row["unique_id"] for row in rows[::24]] == ["coffee", "ice cream", "soup"]
    assert len({row["ds"] for row in rows}) == 24
    assert float(rows[0]["0.9"]) == pytest.approx(float(rows[0]["mean"]) + 0.9)

    with page.expect_download() as download:
        page.click("#save-png")
    assert download.value.suggested_filename == "coffee-forecast.png"
    download.value.save_as(tmp_path / "chart.png")
    picture = (tmp_path / "chart.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20]) > 1000, "the width in pixels"

    page.select_option("#series", label="soup")
    assert page.text_content("#result-title") == "soup"
    page.click("#table-fold summary")
    assert page.text_content("#table tbody tr:first-child").startswith(rows[48]["ds"])


def test_the_copied_command_sends_the_same_request(visit_page: OpenPage, url: str) -> None:
    page = visit_page()
    special_id = 'it\'s "so" $HOME \\ `x`'
    paste_table(page, GOOD.replace("shop", '"' + special_id.replace('"', '""') + '"'))
    page.wait_for_selector("#result:not([hidden])")
    request_forecast(page)
    page.click("#copy-curl")
    page.wait_for_selector("#action-status:text-is('Copied as curl.')")
    command: str = page.evaluate("navigator.clipboard.readText()")
    head, body, end = command.strip().rsplit("\n", 2)
    assert head.startswith(f"curl -sS {url}/v1/forecast")
    assert head.endswith("<<'JSON'")
    assert end == "JSON"
    assert json.loads(body)["series"][0]["id"] == special_id
    response = httpx.post(f"{url}/v1/forecast", content=body, headers={"content-type": "application/json"}).json()
    assert response["forecasts"][0]["mean"] == [23.5] * 24

    page.click("#copy-python")
    page.wait_for_selector("#action-status:text-is('Copied as Python.')")
    program = ast.parse(page.evaluate("navigator.clipboard.readText()"))
    constants = [node.value for node in ast.walk(program) if isinstance(node, ast.Constant)]
    assert {special_id, url, HOURS[0], 23.5, 24, 0.975} <= set(constants)


INVALID_TABLES = [
    ("unique_id,ds,y\na,2026-01-01,1\na,2026-01-02,1.3x\n", "a number, or an empty cell", "line 3"),
    ("ds,y\n2026-01-01,1\n\n01/02/2026,2\n", "a timestamp such as", "line 4"),
    ("ds,y\n2026-01-01,1\n2026-01-02\n", "2 columns", "line 3"),
    ("ds,y\n2026-01-01,1\n2026-01-01,2\n", "each timestamp once", "lines 2 and 3"),
    ("day,shop,region,turnover\n2026-01-01,a,b,2\n", "the columns unique_id, ds and y", "line 1"),
    ('ds,y\n"2026-01-01,1\n', "a closing quotation mark", "line 2"),
    ("unique_id,ds,y\na,2026-02-30,1\n", "a timestamp such as", "line 2"),
    ("ds,y\n2026-01-01,\n2026-01-02,NA\n", "numbers in series", "line 2"),
    ("ds\ty\n2026-01-01\t1,5\n", "a number", "line 2"),
    ("ds,y\n", "values below the header", "line 1"),
]


def test_an_invalid_table_is_explained(visit_page: OpenPage) -> None:
    page = visit_page()
    for text, expected, where in INVALID_TABLES:
        paste_table(page, text)
        page.wait_for_selector(f"#messages dd:has-text('{expected}')")
        names, details = (page.locator(f"#messages {part}").all_text_contents() for part in ("dt", "dd"))
        assert names == ["Expected", "Found", "Where", "What to do"]
        assert details[2] == where, text
        assert page.is_disabled("#run-forecast")
    paste_table(page, GOOD)
    page.wait_for_selector("#result:not([hidden])")
    assert page.locator("#messages .message").count() == 0


VALID_TABLES: list[tuple[str, list[Any], list[Any]]] = [
    ("ds;y\n01.01.2026 08:00;1,5\n01.01.2026 09:00;\n01.01.2026 10:00;-2\n",
     [f"2026-01-01 {hour:02}:00" for hour in range(8, 11)], [1.5, None, -2]),
    ("y\tds\n1.5\t2026-01-01T08:00Z\n3e2\t2026-01-01T10:00Z\n2\t2026-01-01T09:00Z\n4\t2026-01-01T12:00Z\n5\t2026-01-01T13:00Z\n",
     [f"2026-01-01T{hour:02}:00Z" for hour in range(8, 14)], [1.5, 2, 300, None, 4, 5]),
    ("\ufeff2026-01-01,1\r\n2026-01-02,2\r\n2026-01-03,\r\n", ["2026-01-01", "2026-01-02"], [1, 2]),
    ("ds,y\n2025-11-30,1\n2025-12-31,2\n2026-02-28,3\n2026-03-31,4\n2026-04-30,5\n",
     ["2025-11-30", "2025-12-31", "2026-01-31", "2026-02-28", "2026-03-31", "2026-04-30"], [1, 2, None, 3, 4, 5]),
    ("ds,y\n7,1\n8,2\n11,3\n12,4\n", [7, 8, 9, 10, 11, 12], [1, 2, None, None, 3, 4]),
]  # fmt: skip


def test_common_table_formats_are_parsed(visit_page: OpenPage) -> None:
    page = visit_page()
    for text, ds, y in VALID_TABLES:
        paste_table(page, text)
        rows = len(text.splitlines()) - ("y" in text)
        page.wait_for_selector(f"#data-status:text-is('pasted text: 1 series, {rows} rows')")
        assert next_request_body(page)["series"] == [{"id": "series", "ds": ds, "y": y}]


def test_a_single_column_asks_for_its_start(visit_page: OpenPage) -> None:
    page = visit_page()
    paste_table(page, "demand\n1\n2,5\n")
    page.wait_for_selector("#messages .message")
    paste_table(page, "demand\n1\n2.5\n3\n4\n")
    page.wait_for_selector("#start-field:not([hidden])")
    assert page.input_value("#freq") == "h", "the frequency of the model"
    page.fill("#start", "tomorrow")
    page.keyboard.press("Tab")
    page.wait_for_selector("#messages .message")
    assert page.is_disabled("#run-forecast")
    page.fill("#start", "2026-01-01T05:00")
    page.keyboard.press("Tab")
    assert next_request_body(page)["series"] == [
        {"id": "series", "start": "2026-01-01T05:00:00", "freq": "h", "y": [1, 2.5, 3, 4]}
    ]
    wait_for_forecast(page)
    page.click("#table-fold summary")
    assert "2026-01-01T09:00" in page.text_content("#table tbody tr:first-child")


def test_values_can_be_read_with_the_keyboard(visit_page: OpenPage) -> None:
    page = visit_page(reduced_motion="reduce")
    paste_table(page, GOOD)
    page.wait_for_selector("#result:not([hidden])")
    request_forecast(page)
    page.focus("#chart-box")
    page.keyboard.press("ArrowRight")
    description = page.text_content("#chart-live")
    assert description == "2 Jan 2026, 00:00, forecast 23.5, 80% 23.6 to 24.4, 95% 23.525 to 24.475, step 1"
    page.keyboard.press("ArrowLeft")
    assert page.text_content("#chart-live") == "1 Jan 2026, 23:00, observed 23.5"
    assert page.is_visible(".tooltip")
    page.keyboard.press("End")
    assert "step 24" in page.text_content("#chart-live")
    page.keyboard.press("Home")
    assert "observed 0.5" in page.text_content("#chart-live")
    page.keyboard.press("PageDown")
    assert "observed 10.5" in page.text_content("#chart-live")
    page.keyboard.press("Escape")
    assert not page.is_visible(".tooltip")
    assert page.get_attribute("#chart-live", "aria-live") == "polite"


def test_a_change_requests_a_new_forecast_and_a_failing_series_shows_its_error(visit_page: OpenPage) -> None:
    page = visit_page()
    paste_table(page, GOOD + "short,2026-01-01T00:00,1\nshort,2026-01-01T01:00,1\n")
    page.wait_for_selector("#result:not([hidden])")
    request_forecast(page)
    page.fill("#horizon", "5")
    with page.expect_request("**/v1/forecast") as request:
        page.keyboard.press("Tab")
    assert request.value.post_data_json["horizon"] == 5
    with page.expect_request("**/v1/forecast") as request:
        page.uncheck("#intervals input[value='0.95']", force=True)
    assert request.value.post_data_json["levels"] == [0.1, 0.9]
    page.wait_for_selector(".legend:not(:has-text('95%'))")
    assert page.locator("#chart .band").count() == 1
    page.select_option("#series", index=1)
    message = page.text_content("#messages .message")
    assert "No forecast for short" in message
    assert page.locator("#chart .forecast").count() == 0
    assert "short (no forecast)" in page.locator("#series option").all_text_contents()
    with page.expect_download():
        page.click("#save-csv")
    assert "1 of 2 series" in page.text_content("#action-status")


def test_a_change_during_a_running_forecast_requests_a_new_one(visit_page: OpenPage) -> None:
    page = visit_page()
    paste_table(page, GOOD)
    page.wait_for_selector("#result:not([hidden])")
    page.route("**/v1/forecast", lambda route: None)  # the first request is never answered
    page.click("#run-forecast")
    page.fill("#horizon", "5")
    with page.expect_request("**/v1/forecast") as request:
        page.keyboard.press("Tab")
    assert request.value.post_data_json["horizon"] == 5


def test_values_that_differ_only_by_rounding_are_drawn(visit_page: OpenPage) -> None:
    page = visit_page()
    paste_table(page, "ds,y\n2026-01-01,0.3\n2026-01-02,0.30000000000000004\n2026-01-03,0.3\n")
    page.wait_for_selector("#result:not([hidden])")
    assert page.locator("#chart .gridline").count() > 1


def test_more_series_than_the_request_limit(visit_page: OpenPage, tmp_path: Path) -> None:
    page = visit_page()
    table = "unique_id,ds,y\n" + "".join(f"s{number},{ds},{number}\n" for number in range(130) for ds in HOURS[:4])
    (tmp_path / "many.csv").write_text(table)
    page.set_input_files("#file", tmp_path / "many.csv")
    page.wait_for_selector("#series-search:not([hidden])")
    page.click("#run-forecast")
    page.wait_for_selector("#progress", state="hidden")
    page.wait_for_selector("#save-csv:enabled")
    with page.expect_download() as download:
        page.click("#save-csv")
    download.value.save_as(tmp_path / "forecast.csv")
    rows = csv_rows((tmp_path / "forecast.csv").read_text())
    assert [row["mean"] for row in rows[::24]] == [str(number) for number in range(130)]
    page.fill("#series-search", "s129")
    assert page.locator("#series option").all_text_contents() == ["s129"]
    assert page.text_content("#result-title") == "s129", "the chart shows the series that the list shows"


def test_ids_that_a_spreadsheet_would_compute_are_saved_as_text(visit_page: OpenPage, tmp_path: Path) -> None:
    names = ["=1+2", "+a", "-b", "@c", "-5", "d=e"]
    page = visit_page()
    paste_table(page, "unique_id,ds,y\n" + "".join(f"{name},{ds},-1.5\n" for name in names for ds in HOURS[:4]))
    page.wait_for_selector("#result:not([hidden])")
    page.click("#run-forecast")
    page.wait_for_selector("#save-csv:enabled")
    with page.expect_download() as download:
        page.click("#save-csv")
    download.value.save_as(tmp_path / "forecast.csv")
    rows = csv_rows((tmp_path / "forecast.csv").read_text())
    assert sorted({row["unique_id"] for row in rows}) == sorted(["'=1+2", "'+a", "'-b", "'@c", "-5", "d=e"])
    assert {row["mean"] for row in rows} == {"-1.5"}, "numbers stay numbers"


def test_an_open_quotation_mark_is_found_in_linear_time(visit_page: OpenPage) -> None:
    page = visit_page()
    table = "ds,y\n" + '"\n' + "2026-01-01,1\n" * 200_000
    message = page.evaluate(
        """async (table) => {
          const { parseTable } = await import("/page/csv.js");
          return parseTable(table).error.title;
        }""",
        table,
    )
    assert "quotation mark" in message, "joining each line with all before it would not end before the timeout"


def test_a_large_table_does_not_freeze_the_page(visit_page: OpenPage, tmp_path: Path) -> None:
    page = visit_page()
    timestamps = pd.date_range("2010-01-01", periods=100_000, freq="h").strftime("%Y-%m-%dT%H:%M")
    (tmp_path / "large.csv").write_text(
        "ds,y\n" + "".join(f"{ds},{index % 97}\n" for index, ds in enumerate(timestamps))
    )
    page.evaluate("""() => {
      window.longest = 0; let last = performance.now();
      setInterval(() => { const now = performance.now(); longest = Math.max(longest, now - last); last = now; }, 10);
    }""")
    page.set_input_files("#file", tmp_path / "large.csv")
    page.wait_for_selector("#result:not([hidden])", timeout=20_000)
    assert "120 values of history" in page.get_attribute("#chart-box", "aria-label"), "five horizons"
    page.check("#range input[value='all']", force=True)
    page.wait_for_selector("#chart-box[aria-label*='100000 values of history']")
    assert "100,000" in page.text_content("#data-status")
    assert len(page.get_attribute("#chart .history", "d")) < 200_000, "the line is drawn as its envelope"
    assert page.evaluate("longest") < 1500, "milliseconds"
