"""`POST /invocations`: compatible with SageMaker's DeepAR (`instances` with a `target`) and with MLflow's scoring server.

The formats are from "DeepAR Inference Formats" of the SageMaker developer guide, and from "Deploy MLflow Model as a Local
Inference Server" of MLflow's documentation. Neither has errors of single series, so the first rejected series is the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import orjson
import pandas as pd
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from forecaster.data.frames.panel import to_panel
from forecaster.data.symbols import decode_symbols
from forecaster.errors import ForecasterError, FrequencyUnknown
from forecaster.series import Forecast
from serving.asgi.admission import one_by_one
from serving.asgi.bodies import Body
from serving.deadline import Deadline
from serving.deployment.slot import DeployedModel, FittedModelProtocol
from serving.errors import ApiError
from serving.forecasting.endpoint import ComputeJob, EncodedResponse, Endpoint
from serving.forecasting.outcomes import compute_forecasts, compute_outcomes
from serving.formats import limits, parsing
from serving.formats.outcome import ForecastResult
from serving.formats.schema import (
    MAX_COLUMNS,
    ForecastOptions,
    GridSeries,
    LevelsField,
    RequestModel,
    SeasonField,
    SeriesInput,
    StrictModel,
    Text,
    to_array,
)
from serving.formats.series import validate_season
from serving.formats.state_token import TokenSigner
from serving.formats.timestamps import FreqField, TimestampField, parse_step
from serving.settings import Settings

MAX_FRAME_COLUMNS = 3 * MAX_COLUMNS  # covariates, static features and channels


def _limit_frame_columns(columns: Any) -> Any:
    """Raises ValueError for more columns than `MAX_FRAME_COLUMNS`, before their cells are validated."""
    if isinstance(columns, dict) and len(columns) > MAX_FRAME_COLUMNS:
        raise ValueError(f"Expected at most {MAX_FRAME_COLUMNS} columns; found {len(columns)}")
    return columns


FrameCell = int | float | Annotated[str, Field(max_length=200)] | None
FrameCells = Annotated[list[FrameCell], Field(fail_fast=True)]
FrameRecord = Annotated[dict[Text, FrameCell], BeforeValidator(_limit_frame_columns)]
FrameColumns = Annotated[dict[Text, FrameCells], BeforeValidator(_limit_frame_columns)]
FrameRecords = Annotated[list[FrameRecord], Field(fail_fast=True)]
_DECILES = tuple(f"0.{decile}" for decile in range(1, 10))


class DeepArInstance(RequestModel):
    """A history in DeepAR's format; its frequency is that of the model."""

    start: TimestampField = Field(description="timestamp of the first value, as in /v1/forecast")
    target: Annotated[list[float | Literal["NaN"] | None], Field(fail_fast=True), AfterValidator(to_array)] = Field(
        description="values, oldest first; null or NaN marks a missing value"
    )
    cat: int | Annotated[list[int], Field(fail_fast=True)] | None = Field(
        default=None, description="values of the model's static features, in their order, as integers"
    )
    dynamic_feat: Annotated[
        list[Annotated[list[float], Field(fail_fast=True), AfterValidator(to_array)]], Field(fail_fast=True)
    ] = Field(
        default=[],
        description="the model's covariates, in their order, each as long as the target and the horizon together",
    )


class DeepArConfiguration(RequestModel):
    """The output requested from DeepAR."""

    num_samples: int = Field(default=100, ge=1, description="number of sample paths, if `output_types` has samples")
    output_types: Annotated[list[Literal["mean", "quantiles", "samples"]], Field(fail_fast=True)] = Field(
        default=["mean", "quantiles"], description="what each prediction has"
    )
    quantiles: list[Annotated[str, Field(pattern=r"^(0?\.[0-9]{1,6}|[1-9](\.[0-9]{1,3})?e-[1-6])$")] | float] = Field(
        default=list(_DECILES), max_length=99, description="levels, as text or numbers"
    )


class DeepArRequest(RequestModel):
    """A request in DeepAR's format. The horizon is that of the model."""

    instances: Annotated[list[DeepArInstance], Field(fail_fast=True)] = Field(min_length=1, description="the histories")
    configuration: DeepArConfiguration | None = Field(default=None, description="the requested output")

    @property
    def deadline_ms(self) -> None:
        """The format has no deadline."""


class DeepArPrediction(StrictModel):
    """The forecast of an instance, with the fields that the configuration requests."""

    mean: list[float] = Field(default=[], description="point forecasts")
    quantiles: dict[str, list[float]] = Field(default={}, description="by level, written as in the request")
    samples: list[list[float | None]] = Field(default=[], description="sample paths")


class DeepArResponse(StrictModel):
    """One prediction for each instance, in order."""

    predictions: list[DeepArPrediction] = Field(description="one prediction for each instance")


class SplitFrame(RequestModel):
    """A frame as pandas serialises it with orient="split"."""

    columns: Annotated[list[Text], Field(fail_fast=True)] = Field(description="names of the columns")
    data: Annotated[list[FrameCells], Field(fail_fast=True)] = Field(description="rows, with one cell for each column")
    index: FrameCells | None = Field(default=None, description="index of the frame, which is ignored")


class ScoringParameters(RequestModel):
    """The `params` of MLflow's scoring protocol."""

    horizon: int | None = Field(
        default=None, ge=1, description="number of steps to forecast; by default the model's horizon"
    )
    levels: LevelsField = Field(default=[])
    freq: FreqField | None = Field(
        default=None,
        description="frequency of the series; by default that of the model, and for `base` the inferred one",
    )
    season: SeasonField = None
    deadline_ms: int | None = Field(default=None, ge=1, description="as in /v1/forecast")


class ScoringRequest(RequestModel):
    """A request of MLflow's scoring protocol: a long frame `unique_id, ds, y` in one of its formats, and parameters."""

    dataframe_split: SplitFrame | None = Field(default=None, description='a frame with orient="split"')
    dataframe_records: FrameRecords | None = Field(default=None, description='a frame with orient="records"')
    inputs: FrameColumns | FrameRecords | None = Field(default=None, description="a frame by columns or by rows")
    instances: FrameRecords | None = Field(default=None, description="a frame by rows")
    params: ScoringParameters = ScoringParameters()

    @property
    def deadline_ms(self) -> int | None:
        """Milliseconds until the client needs the response."""
        return self.params.deadline_ms

    @model_validator(mode="after")
    def _validate_single_shape(self) -> ScoringRequest:
        frames = (self.dataframe_split, self.dataframe_records, self.inputs, self.instances)
        frame_count = sum(frame is not None for frame in frames)
        if frame_count != 1:
            raise ValueError(
                f"Expected one of dataframe_split, dataframe_records, inputs and instances; found {frame_count}"
            )
        return self

    def count_cells(self) -> int:
        """Returns the number of cells of the frame."""
        if self.dataframe_split is not None:
            return sum(map(len, self.dataframe_split.data))
        rows = self.dataframe_records or self.instances or self.inputs or []
        return sum(map(len, rows.values() if isinstance(rows, dict) else rows))

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
    """A row for each series and forecast step: `unique_id`, `ds`, `mean` (or `symbol`), and a column for each level."""

    predictions: list[FrameRecord] = Field(description="the rows")


def decode_invocation(body: Body, _: str, __: Settings) -> DeepArRequest | ScoringRequest:
    """Decodes a request in either format. Raises ApiError (400, 422)."""
    fields = parsing.parse_json(body)
    instances = fields.get("instances") if isinstance(fields, dict) else None
    if isinstance(instances, list) and instances and isinstance(instances[0], dict) and "target" in instances[0]:
        return parsing.validate_fields(DeepArRequest, fields)
    return parsing.validate_fields(ScoringRequest, fields)


def count_invocation_steps(request: DeepArRequest | ScoringRequest, model: DeployedModel) -> int:
    """Returns the steps of histories and forecasts; for a frame, whose series are not known yet, its cells."""
    horizon = model.predictor.fitted_model.spec.horizon
    if isinstance(request, ScoringRequest):
        return request.count_cells() + (request.params.horizon or horizon)
    configuration = request.configuration or DeepArConfiguration()
    samples = configuration.num_samples if "samples" in configuration.output_types else 0
    return sum(len(instance.target) + horizon * (1 + samples) for instance in request.instances)


def compute_invocation(job: ComputeJob[DeepArRequest | ScoringRequest]) -> EncodedResponse:
    """Returns the response in the format of the request. Raises ApiError."""
    request, model, deadline, settings, _ = job
    deadline.check()
    if isinstance(request, DeepArRequest):
        predictions, series_count = _predict_deepar(request, model, settings, deadline)
    else:
        predictions, series_count = _predict_scoring(request, model, settings, deadline)
    body = orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)
    return EncodedResponse(body, forecast_count=series_count)


def _predict_deepar(
    request: DeepArRequest, model: DeployedModel, settings: Settings, deadline: Deadline
) -> tuple[list[dict[str, Any]], int]:
    if model.is_pretrained:
        raise ApiError.from_forecaster_error(
            FrequencyUnknown(
                "Expected a model with a frequency, because this format has none; the pretrained network in use takes that of "
                "each series. Send the histories to /v1/forecast, or serve a trained model.",
                where="instances",
            )
        )
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
        [outcomes] = compute_outcomes([series], options, model, deadline, signer)
    except ApiError as error:
        if error.code != "level_out_of_range" or request.configuration is not None:
            raise
        levels = {}  # the request does not ask for quantiles explicitly, and the model was not calibrated
        options = options.model_copy(update={"levels": []})
        [outcomes] = compute_outcomes([series], options, model, deadline, signer)
    return [_build_prediction(outcome.result, levels, configuration) for outcome in outcomes], len(outcomes)


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


def _predict_scoring(
    request: ScoringRequest, model: DeployedModel, settings: Settings, deadline: Deadline
) -> tuple[list[dict[str, Any]], int]:
    fitted_model = model.predictor.fitted_model
    spec, frame = fitted_model.spec, request.to_frame()
    group_columns = () if spec.group is None or spec.group in spec.static else (spec.group,)
    limits.validate_frame_size(frame.size, settings)
    try:
        panel = to_panel(
            frame,
            freq=_find_frequency(request.params, model),
            covariates=spec.covariates,
            static=(*spec.static, *(name for name in group_columns if name in frame)),
            channels=spec.channels,
            text_covariates=tuple(fitted_model.encoding.categories),
            vocabulary=spec.head.vocabulary if spec.head.is_symbolic else None,
        )
    except ForecasterError as error:
        raise ApiError.from_forecaster_error(error) from error
    season, horizon = request.params.season, request.params.horizon or model.find_horizon(panel.freq)
    options = ForecastOptions(horizon=horizon, levels=request.params.levels)
    order = {str(series_id): index for index, series_id in enumerate(frame["unique_id"].unique())}
    series = sorted(panel.series, key=lambda item: order[item.id])  # the response keeps the order of the request
    limits.validate_response_size(options, len(series), settings)
    limits.validate_history_size(series, settings)
    forecasts = compute_forecasts(series, options, model.for_series(panel.freq, season), deadline)
    vocabulary = spec.head.vocabulary
    return [row for forecast in forecasts for row in _forecast_rows(forecast, vocabulary)], len(forecasts)


def _find_frequency(params: ScoringParameters, model: DeployedModel) -> str | None:
    """Returns the frequency of the frame; None: it is inferred. Raises FrequencyUnknown, or SeasonMismatch for another season."""
    if params.freq is not None:
        parse_step(params.freq, where="freq")
    if not model.is_pretrained:
        validate_season(params.season, model.predictor.fitted_model.season, where="season")
    return (
        str(params.freq)
        if params.freq is not None
        else None
        if model.is_pretrained
        else model.predictor.fitted_model.freq
    )


def _forecast_rows(forecast: Forecast | ForecasterError, vocabulary: Sequence[str]) -> list[dict[str, Any]]:
    """Returns one row for each step: the mean and the quantiles or, with the vocabulary of a model of symbols, the symbol."""
    if isinstance(forecast, ForecasterError):
        raise ApiError.from_forecaster_error(forecast) from forecast
    columns: dict[str, Sequence[Any]] = {
        "unique_id": [forecast.id] * len(forecast.mean),
        "ds": [
            timestamp if isinstance(timestamp, int) else timestamp.isoformat() for timestamp in forecast.ds.tolist()
        ],
        **({"symbol": decode_symbols(forecast.mean, vocabulary)} if vocabulary else {"mean": forecast.mean.tolist()}),
        **{f"{level:g}": values.tolist() for level, values in forecast.quantiles.items()},
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


INVOCATIONS = Endpoint(decode_invocation, count_invocation_steps, one_by_one(compute_invocation), is_recorded=True)
