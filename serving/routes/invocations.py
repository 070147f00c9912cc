"""`POST /invocations`: compatible with SageMaker's DeepAR (`instances` with a `target`) and with MLflow's scoring server.

The formats are from "DeepAR Inference Formats" of the SageMaker developer guide, and from "Deploy MLflow Model as a Local
Inference Server" of MLflow's documentation. Neither has errors of single series, so the first rejected series is the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field, model_validator

from forecaster.data.frames.panel import to_panel
from forecaster.errors import ForecasterError
from forecaster.series import Forecast
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel, FittedModelProtocol
from serving.errors import ApiError
from serving.forecasting.outcomes import compute_forecasts, compute_outcomes, require_model
from serving.formats import chunked_json, limits, parsing
from serving.formats.chunked_json import to_array
from serving.formats.outcome import ForecastResult
from serving.formats.schema import ForecastOptions, GridSeries, LevelsField, SeriesInput, StrictModel, Text
from serving.formats.state_token import TokenSigner
from serving.formats.timestamps import TimestampField
from serving.settings import Settings

FrameCell = int | float | Annotated[str, Field(max_length=200)] | None
FrameRecord = dict[Text, FrameCell]
_DECILES = tuple(f"0.{decile}" for decile in range(1, 10))


class DeepArInstance(StrictModel):
    """A history in DeepAR's format; its frequency is that of the model."""

    start: TimestampField
    target: Annotated[list[float | Literal["NaN"] | None], AfterValidator(to_array)] = Field(
        description="values, oldest first; null or NaN marks a missing value"
    )
    cat: int | list[int] | None = Field(
        default=None, description="values of the model's static features, in their order, as integers"
    )
    dynamic_feat: list[Annotated[list[float], AfterValidator(to_array)]] = Field(
        default=[],
        description="the model's covariates, in their order, each as long as the target and the horizon together",
    )


class DeepArConfiguration(StrictModel):
    """The output requested from DeepAR."""

    num_samples: int = Field(default=100, ge=1, description="number of sample paths, if `output_types` has samples")
    output_types: list[Literal["mean", "quantiles", "samples"]] = Field(default=["mean", "quantiles"])
    quantiles: list[Annotated[str, Field(pattern=r"^(0?\.[0-9]{1,6}|[1-9](\.[0-9]{1,3})?e-[1-6])$")] | float] = Field(
        default=list(_DECILES), max_length=99, description="levels, as text or numbers"
    )


class DeepArRequest(StrictModel):
    """A request in DeepAR's format. The horizon is that of the model."""

    instances: list[DeepArInstance] = Field(min_length=1)
    configuration: DeepArConfiguration | None = None


class DeepArPrediction(StrictModel):
    """The forecast of an instance, with the fields that the configuration requests."""

    mean: list[float] = Field(default=[])
    quantiles: dict[str, list[float]] = Field(default={}, description="by level, written as in the request")
    samples: list[list[float | None]] = Field(default=[])


class DeepArResponse(StrictModel):
    """One prediction for each instance, in order."""

    predictions: list[DeepArPrediction]


class SplitFrame(StrictModel):
    """A frame as pandas serialises it with orient="split"."""

    columns: list[Text]
    data: list[list[FrameCell]]
    index: list[FrameCell] | None = None


class ScoringParameters(StrictModel):
    """The `params` of MLflow's scoring protocol."""

    horizon: int | None = Field(
        default=None, ge=1, description="number of steps to forecast; by default the model's horizon"
    )
    levels: LevelsField = Field(default=[])
    deadline_ms: int | None = Field(default=None, ge=1, description="as in /v1/forecast")


class ScoringRequest(StrictModel):
    """A request of MLflow's scoring protocol: a long frame `unique_id, ds, y` in one of its formats, and parameters."""

    dataframe_split: SplitFrame | None = None
    dataframe_records: list[FrameRecord] | None = None
    inputs: dict[Text, list[FrameCell]] | list[FrameRecord] | None = None
    instances: list[FrameRecord] | None = None
    params: ScoringParameters = ScoringParameters()

    @model_validator(mode="after")
    def _validate_single_shape(self) -> ScoringRequest:
        frames = (self.dataframe_split, self.dataframe_records, self.inputs, self.instances)
        frame_count = sum(frame is not None for frame in frames)
        if frame_count != 1:
            raise ValueError(
                f"Expected one of dataframe_split, dataframe_records, inputs and instances; found {frame_count}"
            )
        return self

    def to_frame(self) -> pd.DataFrame:
        """Returns the frame; raises ApiError (422) if its rows or columns have different lengths."""
        split, inputs = self.dataframe_split, self.inputs
        columns: Sequence[Sequence[FrameCell]] = list(inputs.values()) if isinstance(inputs, dict) else ()
        if len({len(column) for column in columns}) > 1 or (
            split is not None and any(len(row) != len(split.columns) for row in split.data)
        ):
            raise ApiError(
                "invalid_request",
                "Expected a frame with a cell for each row and column; found rows or columns of different lengths. Correct it.",
            )
        if split is not None:
            frame = pd.DataFrame(split.data, columns=split.columns)
        else:
            frame = pd.DataFrame(self.dataframe_records or self.instances or inputs)
        timestamps = [] if "ds" not in frame else frame.loc[:, "ds"].to_numpy().ravel().tolist()
        if len({isinstance(timestamp, str) for timestamp in timestamps}) > 1 or any(
            isinstance(timestamp, float) for timestamp in timestamps
        ):
            raise ApiError(
                "invalid_request",
                "Expected timestamps that are all text or all integers; found a mixture, or other numbers. Correct the column.",
                where="ds",
            )
        return frame


class ScoringResponse(StrictModel):
    """A row for each series and forecast step: `unique_id`, `ds`, `mean`, and a column for each level."""

    predictions: list[FrameRecord]


def run_invocation(
    body: Body, model: DeployedModel | None, settings: Settings, deadline: Deadline
) -> tuple[bytes, int]:
    """Returns the response in the format of the request, and its number of series. Raises ApiError."""
    deadline.check()
    parsed = parsing.parse_json(body)
    instances = parsed.value.get("instances") if isinstance(parsed.value, dict) else None
    if isinstance(instances, list) and instances and isinstance(instances[0], dict) and "target" in instances[0]:
        return _run_deepar(parsing.validate_fields(DeepArRequest, parsed), require_model(model), settings, deadline)
    return _run_scoring(parsing.validate_fields(ScoringRequest, parsed), require_model(model), settings, deadline)


def _run_deepar(
    request: DeepArRequest, model: DeployedModel, settings: Settings, deadline: Deadline
) -> tuple[bytes, int]:
    fitted_model, configuration = model.predictor.fitted_model, request.configuration or DeepArConfiguration()
    levels = {
        str(level): float(level) for level in configuration.quantiles if "quantiles" in configuration.output_types
    }
    if not all(0 < level < 1 for level in levels.values()):
        raise ApiError(
            "invalid_request",
            "Expected quantiles between 0 and 1, exclusive; found one outside. Correct them.",
            where="configuration",
        )
    options = ForecastOptions(
        horizon=fitted_model.spec.horizon,
        levels=sorted(set(levels.values())),
        samples=configuration.num_samples if "samples" in configuration.output_types else 0,
    )
    series = [_parse_instance(instance, fitted_model, index) for index, instance in enumerate(request.instances)]
    limits.validate_request_size(options, series, settings)
    signer = TokenSigner.from_settings(settings)
    try:
        outcomes = compute_outcomes(series, options, model, deadline, signer)
    except ApiError as error:
        if error.code != "level_out_of_range" or request.configuration is not None:
            raise
        levels = {}  # the request does not ask for quantiles explicitly, and the model was not calibrated
        outcomes = compute_outcomes(series, options.model_copy(update={"levels": []}), model, deadline, signer)
    predictions = [_build_prediction(outcome.result, levels, configuration) for outcome in outcomes]
    return chunked_json.dumps({"predictions": predictions}), len(outcomes)


def _parse_instance(instance: DeepArInstance, fitted_model: FittedModelProtocol, index: int) -> SeriesInput:
    spec, where = fitted_model.spec, f"instances.{index}"
    categories = [instance.cat] if isinstance(instance.cat, int) else instance.cat or []
    for field, entries, names in (
        ("cat", categories, spec.static),
        ("dynamic_feat", instance.dynamic_feat, spec.covariates),
    ):
        if len(entries) != len(names):
            raise ApiError(
                "invalid_request",
                f"Expected {len(names)} entries in {field!r}, one for each column of the model ({', '.join(names) or 'none'}); "
                f"found {len(entries)}. Correct the instance.",
                where=f"{where}.{field}",
            )
    return GridSeries.model_construct(
        id=where,
        start=instance.start,
        freq=fitted_model.freq,
        y=np.array(instance.target, dtype=np.float64),  # type: ignore[arg-type]  # null and "NaN" become NaN
        covariates=dict(zip(spec.covariates, instance.dynamic_feat, strict=True)),
        static=dict(zip(spec.static, map(str, categories), strict=True)),
        channels={},
    )


def _build_prediction(
    result: ForecastResult | ForecasterError, levels: dict[str, float], configuration: DeepArConfiguration
) -> dict[str, Any]:
    if isinstance(result, ForecasterError):
        raise ApiError.from_forecaster_error(result) from result
    fields: dict[str, Any] = {"mean": result.forecast.mean} if "mean" in configuration.output_types else {}
    if levels:
        fields["quantiles"] = {name: result.forecast.quantiles[level] for name, level in levels.items()}
    return fields if result.paths is None else {**fields, "samples": result.paths}


def _run_scoring(
    request: ScoringRequest, model: DeployedModel, settings: Settings, deadline: Deadline
) -> tuple[bytes, int]:
    fitted_model = model.predictor.fitted_model
    spec, frame = fitted_model.spec, request.to_frame()
    group_columns = () if spec.group is None or spec.group in spec.static else (spec.group,)
    options = ForecastOptions(horizon=request.params.horizon or spec.horizon, levels=request.params.levels)
    limits.validate_frame_size(frame.size, settings)
    try:
        panel = to_panel(
            frame,
            freq=fitted_model.freq,
            covariates=spec.covariates,
            static=(*spec.static, *(name for name in group_columns if name in frame)),
            channels=spec.channels,
        )
    except ForecasterError as error:
        raise ApiError.from_forecaster_error(error) from error
    order = {str(series_id): index for index, series_id in enumerate(frame["unique_id"].unique())}
    series = sorted(panel.series, key=lambda item: order[item.id])  # the response keeps the order of the request
    limits.validate_response_size(options, len(series), settings)
    limits.validate_history_size(series, settings)
    forecasts = compute_forecasts(series, options, model, deadline.capped(request.params.deadline_ms))
    rows = [row for forecast in forecasts for row in _forecast_rows(forecast)]
    return chunked_json.dumps({"predictions": rows}), len(forecasts)


def _forecast_rows(forecast: Forecast | ForecasterError) -> list[dict[str, Any]]:
    if isinstance(forecast, ForecasterError):
        raise ApiError.from_forecaster_error(forecast) from forecast
    columns: dict[str, Sequence[Any]] = {
        "unique_id": [forecast.id] * len(forecast.mean),
        "ds": [
            timestamp if isinstance(timestamp, int) else timestamp.isoformat() for timestamp in forecast.ds.tolist()
        ],
        "mean": forecast.mean.tolist(),
        **{f"{level:g}": values.tolist() for level, values in forecast.quantiles.items()},
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
