"""The page of a service without a registered model: anybody's table, of any frequency, is forecast by the pretrained network."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest

from serving.deployment.pretrained import PretrainedSlot
from tests.page.conftest import OpenPage, serve_application
from tests.page.test_forecast_view import next_request_body, paste_table, request_forecast, wait_for_forecast

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pretrained_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_application(tmp_path_factory.mktemp("page") / "slot", slot_class=PretrainedSlot, pretrained=True) as url:
        yield url


def make_table(freq: str, steps: int = 60) -> str:
    dates = pd.date_range("2020-01-01", periods=steps, freq=freq)
    return "ds,y\n" + "".join(f"{date:%Y-%m-%d},{100 + index % 7}\n" for index, date in enumerate(dates))


@pytest.mark.parametrize(
    ("freq", "horizon", "unit"), [("D", "14", "day"), ("MS", "18", "month"), ("QS", "8", "quarter")]
)
def test_a_table_of_any_frequency_is_forecast_over_its_usual_horizon(
    visit_page: OpenPage, pretrained_url: str, freq: str, horizon: str, unit: str
) -> None:
    page = visit_page(pretrained_url)
    assert "pretrained network" in page.inner_text("#pretrained-note").lower()
    paste_table(page, make_table(freq))
    page.wait_for_selector("#run-forecast:not([disabled])")
    assert page.input_value("#horizon") == horizon
    request_forecast(page)
    assert f"{horizon} {unit}s ahead by base" in page.inner_text("#result-summary")


def test_the_season_is_sent_with_each_series(visit_page: OpenPage, pretrained_url: str) -> None:
    page = visit_page(pretrained_url)
    paste_table(page, make_table("MS"))
    page.wait_for_selector("#run-forecast:not([disabled])")
    assert "season" not in next_request_body(page)["series"][0]
    wait_for_forecast(page)
    with page.expect_request("**/v1/forecast") as request:
        page.fill("#season", "6")
        page.press("#season", "Tab")
    assert request.value.post_data_json["series"][0]["season"] == 6


def test_a_horizon_that_was_entered_stays(visit_page: OpenPage, pretrained_url: str) -> None:
    page = visit_page(pretrained_url)
    page.fill("#horizon", "5")
    paste_table(page, make_table("D"))
    page.wait_for_selector("#run-forecast:not([disabled])")
    assert page.input_value("#horizon") == "5"


def test_the_model_view_says_that_no_data_of_the_user_trained_it(visit_page: OpenPage, pretrained_url: str) -> None:
    page = visit_page(pretrained_url)
    page.click("#nav-model")
    page.wait_for_selector(".facts")
    text = page.inner_text("#model-body")
    assert "synthetic series only" in text
    assert "any: each series keeps its own" in text


def test_a_registered_model_shows_neither_the_note_nor_the_season(visit_page: OpenPage) -> None:
    page = visit_page()
    assert page.is_hidden("#pretrained-note")
    assert page.is_hidden("#season-field")


def test_a_forecast_is_explained_once_the_fold_is_open(visit_page: OpenPage, pretrained_url: str) -> None:
    page = visit_page(pretrained_url)
    paste_table(page, make_table("MS"))
    page.wait_for_selector("#run-forecast:not([disabled])")
    request_forecast(page)
    with page.expect_request("**/v1/explain") as request:
        page.click("#why-fold summary")
    assert (request.value.post_data_json["horizon"], request.value.post_data_json["faithfulness"]) == (18, True)
    page.wait_for_selector("#why .bar", state="attached", timeout=60_000)  # the first explanation imports torch
    assert page.locator("#why .bar").count() == 60
    assert "random orders" in page.inner_text("#why")
