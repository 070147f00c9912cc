"""POST /invocations: requests and responses in the formats of SageMaker's DeepAR and of MLflow's scoring server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.model import regressor
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast, Series
from forecaster.spec import HeadSpec, NetworkSpec, Spec
from serving.deployment.releases import Release
from serving.deployment.slot import DeployedModel
from serving.routes.invocations import INVOCATIONS
from serving.settings import Settings
from tests.serving.conftest import AppClient, LastValuePredictor, MakeClient, StubModel, publish_stub
from tests.serving.forecasting.test_covariates import ENCODING, make_calibration, make_model
from tests.serving.routes.test_openapi import response_schema, schema_violations

SHORT_HORIZON_MODEL = StubModel(spec=Spec(name="stub", context=3, horizon=2))
DEEPAR_INSTANCE: dict[str, Any] = {"start": "2009-11-01 00:00:00", "target": [4.0, 10.0, "NaN", None, 113.0]}
MLFLOW_FRAME = pd.DataFrame(
    {
        "unique_id": ["b"] * 3 + ["a"] * 4,
        "ds": [*pd.date_range("2026-01-01", periods=3, freq="h"), *pd.date_range("2026-01-02", periods=4, freq="h")],
        "y": [1.0, 2.0, 3.5, 1.0, None, 3.0, 4.0],
    }
)


@pytest.fixture
def invocations_client(slot_folder: Path, make_client: MakeClient) -> AppClient:
    publish_stub(slot_folder)
    return make_client(load=lambda folder: LastValuePredictor(SHORT_HORIZON_MODEL))


def post_invocation(client: AppClient, content: Any) -> Any:
    return client.post("/invocations", json=content)


def dataframe_split(frame: pd.DataFrame) -> Any:
    """Returns a frame as mlflow.deployments and `mlflow models predict` serialise it."""
    return json.loads(frame.to_json(orient="split", index=False, date_format="iso"))


def dataframe_records(frame: pd.DataFrame) -> Any:
    return json.loads(frame.to_json(orient="records", date_format="iso"))


def test_a_deepar_instance_gets_its_configured_outputs(invocations_client: AppClient) -> None:
    configuration = {"num_samples": 2, "output_types": ["mean", "quantiles", "samples"], "quantiles": ["0.5", "0.9"]}
    response = post_invocation(
        invocations_client,
        {"instances": [DEEPAR_INSTANCE, {**DEEPAR_INSTANCE, "target": [1, 2, 3]}], "configuration": configuration},
    )
    assert response.status_code == 200, response.text
    assert response.json() == {
        "predictions": [
            {
                "mean": [113.0, 113.0],
                "quantiles": {"0.5": [113.5, 113.5], "0.9": [113.9, 113.9]},
                "samples": [[113.0, 113.0], [114.0, 114.0]],
            },
            {
                "mean": [3.0, 3.0],
                "quantiles": {"0.5": [3.5, 3.5], "0.9": [3.9, 3.9]},
                "samples": [[3.0, 3.0], [4.0, 4.0]],
            },
        ]
    }
    assert response.headers["x-model"] == "stub/1"


@pytest.mark.parametrize(
    ("configuration", "names"),
    [
        ({"output_types": ["mean"]}, {"mean"}),
        ({"output_types": ["quantiles"], "quantiles": [0.1, ".9"]}, {"quantiles"}),
        ({"output_types": ["samples"], "num_samples": 3}, {"samples"}),
        (None, {"mean", "quantiles"}),
    ],
)
def test_only_requested_outputs_are_returned(
    invocations_client: AppClient, configuration: Any, names: set[str]
) -> None:
    request = {"instances": [DEEPAR_INSTANCE]} | ({"configuration": configuration} if configuration else {})
    assert set(post_invocation(invocations_client, request).json()["predictions"][0]) == names


def test_categories_and_features_map_to_the_columns_of_the_model(slot_folder: Path, make_client: MakeClient) -> None:
    spec = Spec(
        name="wide", context=8, horizon=4, covariates=("promo",), static=("region",), network=NetworkSpec(hidden=8)
    )
    encoding = ENCODING.__class__(numeric={"promo": (0.0, 1.0)}, static={"region": ("0", "1")})
    network = regressor.build_network(
        spec,
        seed=0,
        season=4,
        num_covariates=encoding.num_covariates,
        static_cardinalities=encoding.static_cardinalities,
    )
    predictor = Predictor(FittedModel(spec, "h", 4, pd.Timestamp("2026-01-01"), encoding, network, make_calibration()))
    publish_stub(slot_folder)
    client = make_client(load=lambda folder: predictor)
    y, promo = [float(value) for value in range(10)], [float(step % 2) for step in range(14)]
    instance = {"start": "2026-01-01 00:00:00", "target": y, "cat": [1], "dynamic_feat": [promo]}
    [prediction] = post_invocation(client, {"instances": [instance]}).json()["predictions"]
    series = Series(
        "a", pd.Timestamp("2026-01-01"), "h", np.array(y), {"promo": np.array(promo)}, static={"region": "1"}
    )
    expected = predictor.forecast(series, 4, levels=[0.1])
    np.testing.assert_allclose(prediction["mean"], expected.mean, rtol=1e-6)
    np.testing.assert_allclose(prediction["quantiles"]["0.1"], expected.quantiles[0.1], rtol=1e-6)
    assert post_invocation(client, {"instances": [{**instance, "cat": 1}]}).json()["predictions"] == [prediction]
    for name in ("cat", "dynamic_feat"):
        incomplete = {key: value for key, value in instance.items() if key != name}
        response = post_invocation(client, {"instances": [instance, incomplete]})
        assert (response.status_code, response.json()["error"]["where"]) == (422, f"instances.1.{name}")


def test_an_uncalibrated_model_returns_means_unless_quantiles_are_requested(
    slot_folder: Path, make_client: MakeClient
) -> None:
    spec = Spec(name="plain", context=3, horizon=2, network=NetworkSpec(hidden=4))
    fitted_model = FittedModel(
        spec, "h", 24, pd.Timestamp("2026-01-01"), EMPTY_ENCODING, regressor.build_network(spec, seed=0)
    )
    publish_stub(slot_folder)
    client = make_client(load=lambda folder: Predictor(fitted_model))
    assert set(post_invocation(client, {"instances": [DEEPAR_INSTANCE]}).json()["predictions"][0]) == {"mean"}
    with_quantiles = post_invocation(client, {"instances": [DEEPAR_INSTANCE], "configuration": {"quantiles": ["0.5"]}})
    assert with_quantiles.json()["error"]["code"] == "level_out_of_range"
    with_samples = post_invocation(
        client, {"instances": [DEEPAR_INSTANCE], "configuration": {"output_types": ["samples"]}}
    )
    assert (with_samples.status_code, with_samples.json()["error"]["code"]) == (422, "bad_spec")


@pytest.mark.parametrize(
    "content",
    [
        {"dataframe_split": dataframe_split(MLFLOW_FRAME)},
        {"dataframe_split": {**dataframe_split(MLFLOW_FRAME), "index": list(range(7))}},
        {"dataframe_records": dataframe_records(MLFLOW_FRAME)},
        {"instances": dataframe_records(MLFLOW_FRAME)},
        {"inputs": dataframe_records(MLFLOW_FRAME)},
        {
            "inputs": json.loads(
                json.dumps({name: [row[name] for row in dataframe_records(MLFLOW_FRAME)] for name in MLFLOW_FRAME})
            )
        },
    ],
)
def test_every_mlflow_format_gets_one_row_per_step(invocations_client: AppClient, content: Any) -> None:
    response = post_invocation(invocations_client, {**content, "params": {"horizon": 1, "levels": [0.9, 0.1]}})
    assert response.status_code == 200, response.text
    assert response.json()["predictions"] == [
        {"unique_id": "b", "ds": "2026-01-01T03:00:00", "mean": 3.5, "0.1": 3.6, "0.9": 4.4},
        {"unique_id": "a", "ds": "2026-01-02T04:00:00", "mean": 4.0, "0.1": 4.1, "0.9": 4.9},
    ]
    assert len(post_invocation(invocations_client, content).json()["predictions"]) == 4, (
        "the model's horizon by default"
    )


def test_mlflow_frames_can_have_covariates_and_their_future_values(slot_folder: Path, make_client: MakeClient) -> None:
    predictor = Predictor(make_model(calibration=make_calibration()))
    publish_stub(slot_folder)
    client = make_client(load=lambda folder: predictor)
    ds = pd.date_range("2026-01-01", periods=16, freq="h")
    y = [float(value) for value in range(12)]
    promo, weather = [float(step % 3 == 0) for step in range(16)], ["sun", "rain"] * 8
    frame = pd.DataFrame(
        {"unique_id": "a", "ds": ds, "y": y + [None] * 4, "promo": promo, "weather": weather, "region": "north"}
    )
    response = post_invocation(client, {"dataframe_split": dataframe_split(frame)})
    assert response.status_code == 200, response.text
    series = Series(
        "a",
        ds[0],
        "h",
        np.array(y),
        {"promo": np.array(promo), "weather": np.array(weather, dtype=object)},
        static={"region": "north"},
    )
    np.testing.assert_allclose(
        [row["mean"] for row in response.json()["predictions"]], predictor.forecast(series, 4).mean, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({}, "invalid_request"),
        ({"instances": []}, "missing_column"),
        ({"instances": [{**DEEPAR_INSTANCE, "target": []}]}, "history_too_short"),
        ({"instances": [{**DEEPAR_INSTANCE, "start": "soon"}]}, "bad_stamp"),
        ({"instances": [{**DEEPAR_INSTANCE, "target": [1, "x", 3]}]}, "invalid_request"),
        ({"instances": [{**DEEPAR_INSTANCE, "target": [1, True, 3]}]}, "invalid_request"),
        ({"instances": [{**DEEPAR_INSTANCE, "other": 1}]}, "invalid_request"),
        ({"instances": [DEEPAR_INSTANCE], "configuration": {"quantiles": ["2"]}}, "invalid_request"),
        ({"instances": [DEEPAR_INSTANCE], "configuration": {"quantiles": [1.5]}}, "invalid_request"),
        ({"instances": [DEEPAR_INSTANCE], "configuration": {"num_samples": 0}}, "invalid_request"),
        (
            {"instances": [DEEPAR_INSTANCE], "configuration": {"output_types": ["samples"], "num_samples": 9999}},
            "too_many_samples",
        ),
        (
            {"dataframe_split": dataframe_split(MLFLOW_FRAME), "dataframe_records": dataframe_records(MLFLOW_FRAME)},
            "invalid_request",
        ),
        ({"dataframe_split": {"columns": ["unique_id", "ds"], "data": [["a"], ["b", 1, 2]]}}, "invalid_request"),
        ({"dataframe_split": dataframe_split(MLFLOW_FRAME.drop(columns="y"))}, "missing_column"),
        ({"dataframe_records": dataframe_records(MLFLOW_FRAME.head(2))}, "history_too_short"),
        ({"dataframe_records": []}, "missing_column"),
        ({"inputs": {"unique_id": ["a"], "ds": []}}, "invalid_request"),
        (
            {"dataframe_records": [*dataframe_records(MLFLOW_FRAME), {"unique_id": "c", "ds": 3, "y": 1}]},
            "invalid_request",
        ),
        (
            {"dataframe_records": [*dataframe_records(MLFLOW_FRAME), {"unique_id": "c", "ds": None, "y": 1}]},
            "invalid_request",
        ),
        ({"inputs": [[1, 2], [3, 4]]}, "invalid_request"),
        ({"dataframe_split": dataframe_split(MLFLOW_FRAME), "params": {"horizon": 1001}}, "horizon_out_of_range"),
        ({"dataframe_split": dataframe_split(MLFLOW_FRAME), "params": {"steps": 3}}, "invalid_request"),
    ],
)
def test_an_invalid_request_is_a_422_with_the_standard_error_body(
    invocations_client: AppClient, content: Any, code: str
) -> None:
    response = post_invocation(invocations_client, content)
    assert (response.status_code, response.json()["error"]["code"]) == (422, code)


@pytest.mark.parametrize(
    "content",
    [
        {"instances": [DEEPAR_INSTANCE]},
        {"dataframe_split": dataframe_split(MLFLOW_FRAME)},
        {"instances": [{"target": []}]},
    ],
)
def test_invocations_conform_to_the_openapi_document(invocations_client: AppClient, content: Any) -> None:
    document = invocations_client.get("/docs.json").json()
    response = post_invocation(invocations_client, content)
    assert (
        schema_violations(
            response.json(), response_schema(document, "post", "/invocations", response.status_code), document
        )
        == []
    )


def test_ping_reports_whether_a_model_is_deployed(invocations_client: AppClient, tmp_path: Path) -> None:
    assert invocations_client.get("/ping").status_code == 200


def test_ping_without_a_model_is_a_503(make_client: MakeClient) -> None:
    client = make_client()
    assert (
        client.get("/ping").status_code == post_invocation(client, {"instances": [DEEPAR_INSTANCE]}).status_code == 503
    )


FRAME_CELLS = (
    st.none()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["a", "2026-01-01"])
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {"unique_id": FRAME_CELLS, "ds": FRAME_CELLS, "y": FRAME_CELLS}, optional={"x": FRAME_CELLS}
        ),
        max_size=5,
    ),
    st.sampled_from(["dataframe_records", "instances", "inputs"]),
)
def test_no_frame_causes_a_5xx(invocations_client: AppClient, rows: list[dict[str, Any]], name: str) -> None:
    assert post_invocation(invocations_client, {name: rows}).status_code in (200, 422)


def test_samples_over_http_equal_those_of_the_library(slot_folder: Path, make_client: MakeClient) -> None:
    spec = Spec(name="drawn", context=8, horizon=4, head=HeadSpec(kind="gaussian"), network=NetworkSpec(hidden=8))
    predictor = Predictor(
        FittedModel(
            spec, "h", 24, pd.Timestamp("2026-01-01"), EMPTY_ENCODING, regressor.build_network(spec, seed=0, season=24)
        )
    )
    publish_stub(slot_folder)
    client = make_client(load=lambda folder: predictor)
    y = [float(value) for value in 10 + np.sin(np.arange(12))]
    rows = [{"id": name, "start": "2026-01-01", "freq": "h", "y": y} for name in "ab"]
    response = client.post("/v1/forecast", json={"series": rows, "horizon": 5, "samples": 7, "seed": 3})
    series = Series("a", pd.Timestamp("2026-01-01"), "h", np.array(y))
    [paths] = predictor.sample_batch([series], 5, paths=7, seed=3)
    first, second = (np.array(forecast["samples"]) for forecast in response.json()["forecasts"])
    assert isinstance(predictor.forecast(series, 5), Forecast)
    np.testing.assert_allclose(first, paths, rtol=1e-6)
    assert first.shape == (7, 5)
    assert not np.allclose(first, second), "the samples depend on the id"


@pytest.mark.parametrize(("output_types", "steps"), [(["mean"], 5 + 4), (["mean", "samples"], 5 + 4 * (1 + 100))])
def test_the_work_of_a_deepar_request_counts_only_requested_samples(output_types: list[str], steps: int) -> None:
    request = {"instances": [DEEPAR_INSTANCE], "configuration": {"output_types": output_types}}
    model = DeployedModel(
        Release(name="stub", version="1", digest="0" * 64), Predictor(make_model(calibration=make_calibration())), ""
    )
    decoded = INVOCATIONS.decode(json.dumps(request).encode(), "application/json", Settings())
    assert INVOCATIONS.estimate_work(decoded, model) == steps
