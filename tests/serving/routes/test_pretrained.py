"""The service of the pretrained network: any frequency and season, mixed in one request, in every format and on every route."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from forecaster.bundle.pretrained.base import base_predictor, load_base
from forecaster.bundle.pretrained.specification import MAX_SEASON
from forecaster.series import Forecast, Series
from serving.deployment.pretrained import MAX_ENGINES, MAX_PREDICTORS
from tests.serving.conftest import AppClient, application_clients

Y = [50 + index % 7 + 0.1 * index for index in range(60)]
HOURS = {"id": "hours", "start": "2026-01-01T00:00:00Z", "freq": "h", "y": Y}
DAYS = {"id": "days", "ds": [f"2026-01-{day:02}" for day in range(1, 31)], "y": Y[:30]}
MONTHS = {"id": "months", "start": "2020-01-01", "freq": "MS", "y": Y}
NUMBERS = {"id": "numbers", "start": 1, "freq": 1, "season": 7, "y": Y}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    with application_clients(tmp_path_factory.mktemp("pretrained") / "slot") as make:
        yield make(pretrained=True, ledger="on")


def forecast(client: AppClient, *series: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    response = client.post("/v1/forecast", json={"series": list(series), "horizon": 5, **options})
    assert response.status_code == 200, response.text
    forecasts: list[dict[str, Any]] = response.json()["forecasts"]
    return forecasts


def library_mean(series: Series, *, season: int | None = None) -> np.ndarray:
    predictor = base_predictor(series.freq, horizon=load_base().spec.horizon, season=season)
    outcome = predictor.forecast(series, 5)
    assert isinstance(outcome, Forecast)
    return outcome.mean


def test_quantiles_of_the_network_surround_its_median_in_order(client: AppClient) -> None:
    for outcome in forecast(client, HOURS, DAYS, MONTHS, levels=[0.1, 0.5, 0.9]):
        low, median, high = (np.array(outcome["quantiles"][level]) for level in ("0.1", "0.5", "0.9"))
        assert (low < median).all()
        assert (median < high).all()
        np.testing.assert_allclose(median, outcome["mean"], rtol=1e-6)


def test_series_of_several_frequencies_each_get_an_outcome_in_order(client: AppClient) -> None:
    outcomes = forecast(client, HOURS, DAYS, {**MONTHS, "freq": "fortnight"}, NUMBERS, MONTHS)
    assert [outcome["id"] for outcome in outcomes] == ["hours", "days", "months", "numbers", "months"]
    assert [outcome.get("ds", [None])[0] for outcome in outcomes] == [
        "2026-01-03T12:00:00Z",
        "2026-01-31",
        None,
        61,
        "2025-01-01",
    ]
    assert outcomes[2]["error"]["code"] == "frequency_unknown"
    expected = library_mean(Series("months", pd.Timestamp("2020-01-01"), "MS", np.array(Y)))
    np.testing.assert_allclose(outcomes[4]["mean"], expected, rtol=1e-6)


def test_the_season_of_the_request_replaces_the_usual_one(client: AppClient) -> None:
    usual, weekly = forecast(client, MONTHS, {**MONTHS, "season": 7})
    expected = library_mean(Series("months", pd.Timestamp("2020-01-01"), "MS", np.array(Y)), season=7)
    np.testing.assert_allclose(weekly["mean"], expected, rtol=1e-6)
    assert usual["mean"] != weekly["mean"]


def test_a_series_has_the_same_forecast_alone_and_among_others(client: AppClient) -> None:
    [alone] = forecast(client, DAYS)
    mixed = forecast(client, HOURS, DAYS, NUMBERS)
    np.testing.assert_allclose(mixed[1]["mean"], alone["mean"], rtol=1e-6)


def test_columns_are_ignored_with_one_warning(client: AppClient) -> None:
    columns = {"covariates": {"promo": [0.0] * 65}, "static": {"region": "north"}, "channels": {"visits": Y}}
    [plain], [outcome] = forecast(client, HOURS), forecast(client, {**HOURS, **columns})
    assert outcome["mean"] == plain["mean"]
    [warning] = outcome["warnings"]
    assert all(name in warning for name in ("'promo'", "'region'", "'visits'"))


@pytest.mark.parametrize("steps", [60, 3000])
@pytest.mark.parametrize("season", [None, 5])
def test_a_state_continues_with_its_season(client: AppClient, steps: int, season: int | None) -> None:
    declared = {} if season is None else {"season": season}
    y = [50 + index % 7 + 0.01 * index for index in range(steps + 2)]
    history = {"id": "a", "start": "2010-01-01", "freq": "D", **declared}
    [first] = forecast(client, {**history, "y": y[:steps]}, return_state=True)
    [whole] = forecast(client, {**history, "y": y})
    [continued] = forecast(client, {"id": "a", "state": first["state"], "y": y[steps:], "static": {"ignored": "yes"}})
    np.testing.assert_allclose(continued["mean"], whole["mean"], rtol=1e-5)
    assert continued["ds"] == whole["ds"]
    response = client.post(
        "/v1/forecast",
        json={"series": [{"id": "a", "state": first["state"], "season": 12, "y": []}], "horizon": 5},
    )
    assert response.json()["error"]["code"] == "season_mismatch"


def test_ndjson_and_arrow_take_any_frequency_and_season(client: AppClient) -> None:
    expected = [outcome["mean"] for outcome in forecast(client, MONTHS, {**MONTHS, "season": 7})]
    lines = [{"horizon": 5}, MONTHS, {**MONTHS, "season": 7}]
    response = client.post(
        "/v1/forecast",
        content=b"\n".join(map(orjson.dumps, lines)),
        headers={"content-type": "application/x-ndjson"},
    )
    assert [orjson.loads(line)["mean"] for line in response.content.splitlines()[1:-1]] == expected
    pa = pytest.importorskip("pyarrow")
    table = pa.table(
        {"id": ["a", "b"], "start": ["2020-01-01"] * 2, "freq": ["MS"] * 2, "season": [None, 7], "y": [Y, Y]}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.with_metadata({"forecast": '{"horizon": 5}'})) as stream:
        stream.write_table(table.replace_schema_metadata({"forecast": '{"horizon": 5}'}))
    response = client.post(
        "/v1/forecast",
        content=sink.getvalue().to_pybytes(),
        headers={"content-type": "application/vnd.apache.arrow.stream"},
    )
    with pa.ipc.open_stream(response.content) as stream:
        assert stream.read_all().column("mean").to_pylist() == expected


def test_the_backtest_scores_each_series_with_its_own_season(client: AppClient) -> None:
    response = client.post("/v1/backtest", json={"series": [HOURS, DAYS, NUMBERS], "horizon": 4, "windows": 2})
    assert response.status_code == 200, response.text
    content = response.json()
    assert [outcome["id"] for outcome in content["series"]] == ["hours", "days", "numbers"]
    assert all(outcome["model"]["mae"] >= 0 for outcome in content["series"])
    assert all(outcome["zero_shot"] is None for outcome in (content["overall"], *content["series"])), "the model is it"
    [alone] = client.post("/v1/backtest", json={"series": [NUMBERS], "horizon": 4, "windows": 2}).json()["series"]
    assert alone["seasonal_naive"]["mae"] == pytest.approx(0.7)  # the trend of 0.1 over a season of 7 steps


def test_a_backtest_without_a_horizon_uses_that_of_the_frequency(client: AppClient) -> None:
    request = {"series": [{**HOURS, "y": Y * 2}], "windows": 2}
    assert client.post("/v1/backtest", json=request).json()["horizon"] == 24
    response = client.post("/v1/backtest", json={**request, "series": [*request["series"], MONTHS]})
    assert response.status_code == 422
    assert response.json()["error"]["where"] == "horizon"


def test_a_forecast_is_explained(client: AppClient) -> None:
    pytest.importorskip("torch")
    response = client.post("/v1/explain", json={"series": {**MONTHS, "static": {"region": "north"}}})
    assert response.status_code == 200, response.text
    content = response.json()
    assert content["horizon"] == 18
    assert len(content["attribution"]) == len(Y)
    assert len(content["layers"]) == load_base().spec.network.layers
    assert "'region'" in content["notes"][0]


def test_a_long_frame_is_scored_with_its_own_frequency(client: AppClient) -> None:
    frame = {"columns": ["unique_id", "ds", "y"], "data": [["a", f"2026-01-{day:02}", day] for day in range(1, 31)]}
    response = client.post("/invocations", json={"dataframe_split": frame})
    assert response.status_code == 200, response.text
    assert [row["ds"] for row in response.json()["predictions"]][:2] == ["2026-01-31T00:00:00", "2026-02-01T00:00:00"]
    assert len(response.json()["predictions"]) == 14
    weekly = client.post("/invocations", json={"dataframe_split": frame, "params": {"freq": "D", "season": 5}})
    assert weekly.json()["predictions"] != response.json()["predictions"]


@pytest.mark.parametrize(
    ("path", "request_body", "code"),
    [
        ("/invocations", {"instances": [{"start": "2026-01-01", "target": Y}]}, "frequency_unknown"),
        (
            "/v1/scenarios",
            {"series": MONTHS, "scenarios": [{"name": "a", "covariates": {"promo": [1, 1]}}], "horizon": 2},
            "covariate_unknown",
        ),
    ],
    ids=["DeepAR", "scenarios"],
)
def test_what_the_network_cannot_do_is_refused(client: AppClient, path: str, request_body: Any, code: str) -> None:
    response = client.post(path, json=request_body)
    assert response.status_code == 422
    assert response.json()["error"]["code"] == code


def test_the_model_says_that_it_takes_any_frequency(client: AppClient) -> None:
    content = client.get("/v1/model").json()
    assert (content["freq"], content["season"], content["cutoff"]) == (None, None, None)
    response = client.get("/readyz")
    assert response.json()["model"]["name"] == "base"
    assert response.headers["x-model"].startswith("base/")


def test_served_forecasts_are_recorded_and_scored_against_actuals(client: AppClient) -> None:
    forecast(
        client,
        {**DAYS, "id": "recorded days"},
        {**MONTHS, "id": "recorded months"},
        {**MONTHS, "id": "other", "season": 7},
    )
    actuals = [
        {"id": "recorded days", "start": "2026-01-31", "freq": "D", "y": [52.0, 53.0]},
        {"id": "recorded months", "start": "2025-01-01", "freq": "MS", "y": [55.0]},
    ]
    assert client.post("/v1/actuals", json={"series": actuals}).status_code == 200
    deadline = time.monotonic() + 10  # a process of its own stores the forecasts
    while (content := client.get("/v1/accuracy").json())["scored"] < 2:
        assert time.monotonic() < deadline, content
        time.sleep(0.02)
    assert content["model"]["name"] == "base"
    assert content["overall"]["n"] >= 3
    assert content["overall"]["mase"] > 0


@pytest.mark.parametrize("season", [0, -1, MAX_SEASON + 1, 10**30, 1.5, "12", True, [12]])
def test_a_season_that_is_none_is_refused(client: AppClient, season: Any) -> None:
    content = orjson.dumps({"series": [MONTHS], "horizon": 5}).replace(
        b'"series":[{', b'"series":[{"season":' + str(season).replace("'", '"').replace("True", "true").encode() + b","
    )
    if isinstance(season, str):
        content = content.replace(b'"season":12', b'"season":"12"')
    response = client.post("/v1/forecast", content=content, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["error"]["code"] in ("invalid_request", "malformed_json")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"freq": "fortnight"}, "frequency_unknown"),
        ({"freq": 0}, "frequency_unknown"),
        ({"freq": "999999YS", "start": "2020-01-01"}, "bad_stamp"),
        ({"y": [1.0]}, "history_too_short"),
        ({"y": []}, "history_too_short"),
        ({"y": [None] * 20}, "history_too_short"),
        ({"y": [1e101, 1.0, 2.0]}, "value_out_of_range"),
    ],
)
def test_a_history_that_cannot_be_forecast_is_refused(client: AppClient, fields: dict[str, Any], code: str) -> None:
    response = client.post("/v1/forecast", json={"series": [{**MONTHS, **fields}], "horizon": 5})
    assert response.status_code == 422, response.text
    assert response.json()["error"]["code"] == code


@pytest.mark.parametrize("season", [1, 2, 13, 1440, MAX_SEASON])
@pytest.mark.parametrize("size", [1e-300, 1.0, 1e15, 1e97])
def test_every_accepted_history_has_a_finite_forecast(client: AppClient, season: int, size: float) -> None:
    histories = [
        {**MONTHS, "freq": "D", "id": str(steps), "season": season, "y": (size * np.array(Y[:steps])).tolist()}
        for steps in (2, 3, 60)
    ]
    alternating = {**MONTHS, "id": "alternating", "season": season, "y": [size, -size] * 30}
    for outcome in forecast(client, *histories, alternating):
        assert np.isfinite(outcome["mean"]).all(), outcome


def test_many_frequencies_and_seasons_neither_fail_nor_stay_in_memory(client: AppClient) -> None:
    series = [
        {**HOURS, "id": str(number), "freq": f"{number}min", "season": number, "y": Y[:9]} for number in range(1, 25)
    ]
    assert all("mean" in outcome for outcome in forecast(client, *series))
    model = client.slot.current
    assert model is not None
    engines, predictors = model.specialize.__self__.counts()  # type: ignore[union-attr]
    assert engines <= MAX_ENGINES < len(series)
    assert predictors <= MAX_PREDICTORS


def test_sample_paths_of_several_frequencies(client: AppClient) -> None:
    outcomes = forecast(client, HOURS, {**MONTHS, "season": 7}, samples=4)
    paths = [np.array(outcome["samples"]) for outcome in outcomes]
    assert [path.shape for path in paths] == [(4, 5), (4, 5)]
    [alone] = forecast(client, {**MONTHS, "season": 7}, samples=4)
    np.testing.assert_allclose(paths[1], alone["samples"], rtol=1e-6)


def test_a_request_with_many_frequencies_counts_as_long_work(client: AppClient) -> None:
    from serving.asgi.admission import MAX_SHORT_STEPS
    from serving.forecasting.forecast import FORECAST, decode_forecast
    from serving.settings import Settings

    model = client.slot.current
    assert model is not None
    series = [{**HOURS, "id": str(number), "freq": f"{number}min", "y": Y[:2]} for number in range(1, 41)]
    few, many = (
        decode_forecast(orjson.dumps({"series": part, "horizon": 1}), "application/json", Settings())
        for part in (series[:1], series)
    )
    assert FORECAST.estimate_work(few, model) <= MAX_SHORT_STEPS < FORECAST.estimate_work(many, model)
