"""`POST /invocations` as other services are asked: SageMaker's DeepAR (`instances` with a `target`) and MLflow's scoring.

Shapes from "DeepAR Inference Formats" of the SageMaker developer guide, and from "Deploy MLflow Model as a Local Inference
Server" of MLflow's documentation. Neither knows an error of one series: the first that is refused is the answer, with its place.
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
_DECILES = tuple(f"0.{place}" for place in range(1, 10))


class DeepArInstance(StrictModel):
    """A history as DeepAR takes it; its frequency is the model's."""

    start: TimestampField
    target: Annotated[list[float | Literal["NaN"] | None], AfterValidator(to_array)] = Field(
        description="values, oldest first; null or NaN: not observed"
    )
    cat: int | list[int] | None = Field(
        default=None, description="of the model's static columns in their order, their values as whole numbers"
    )
    dynamic_feat: list[Annotated[list[float], AfterValidator(to_array)]] = Field(
        default=[], description="the model's covariates in their order, each of the length of target and horizon"
    )


class DeepArConfiguration(StrictModel):
    """What an answer of DeepAR holds."""

    num_samples: int = Field(default=100, ge=1, description="futures, where samples are asked for")
    output_types: list[Literal["mean", "quantiles", "samples"]] = Field(default=["mean", "quantiles"])
    quantiles: list[Annotated[str, Field(pattern=r"^(0?\.[0-9]{1,6}|[1-9](\.[0-9]{1,3})?e-[1-6])$")] | float] = Field(
        default=list(_DECILES), max_length=99, description="levels, as text or numbers"
    )


class DeepArRequest(StrictModel):
    """What a client of DeepAR sends. The horizon is the model's."""

    instances: list[DeepArInstance] = Field(min_length=1)
    configuration: DeepArConfiguration | None = None


class DeepArPrediction(StrictModel):
    """The forecast of an instance: what the configuration asks for."""

    mean: list[float] = Field(default=[])
    quantiles: dict[str, list[float]] = Field(default={}, description="by level, as the request wrote it")
    samples: list[list[float | None]] = Field(default=[])


class DeepArResponse(StrictModel):
    """One prediction for each instance, in order."""

    predictions: list[DeepArPrediction]


class SplitFrame(StrictModel):
    """A frame as pandas writes it with orient="split"."""

    columns: list[Text]
    data: list[list[FrameCell]]
    index: list[FrameCell] | None = None


class ScoringParameters(StrictModel):
    """What MLflow calls params."""

    horizon: int | None = Field(default=None, ge=1, description="steps ahead; the model's own, if not given")
    levels: LevelsField = Field(default=[])
    deadline_ms: int | None = Field(default=None, ge=1)


class ScoringRequest(StrictModel):
    """What a client of MLflow's scoring sends: a long frame `unique_id, ds, y` in one of its shapes, and parameters."""

    dataframe_split: SplitFrame | None = None
    dataframe_records: list[FrameRecord] | None = None
    inputs: dict[Text, list[FrameCell]] | list[FrameRecord] | None = None
    instances: list[FrameRecord] | None = None
    params: ScoringParameters = ScoringParameters()

    @model_validator(mode="after")
    def _validate_single_shape(self) -> ScoringRequest:
        shapes = (self.dataframe_split, self.dataframe_records, self.inputs, self.instances)
        if sum(one is not None for one in shapes) != 1:
            raise ValueError("Expected one of dataframe_split, dataframe_records, inputs and instances")
        return self

    def to_frame(self) -> pd.DataFrame:
        """The frame; raises Problem (422) where its rows, or its columns, are of different lengths."""
        split, inputs = self.dataframe_split, self.inputs
        columns: Sequence[Sequence[FrameCell]] = list(inputs.values()) if isinstance(inputs, dict) else ()
        if len({len(column) for column in columns}) > 1 or (
            split is not None and any(len(row) != len(split.columns) for row in split.data)
        ):
            raise ApiError("invalid_request", "Expected a frame with a cell for each row and column. Correct it.")
        if split is not None:
            frame = pd.DataFrame(split.data, columns=split.columns)
        else:
            frame = pd.DataFrame(self.dataframe_records or self.instances or inputs)
        told = [] if "ds" not in frame else frame.loc[:, "ds"].to_numpy().ravel().tolist()
        if len({isinstance(one, str) for one in told}) > 1 or any(isinstance(one, float) for one in told):
            raise ApiError(
                "invalid_request", "Expected stamps as texts, or all as whole numbers. Correct the column.", where="ds"
            )
        return frame


class ScoringResponse(StrictModel):
    """A row for each series and step ahead: `unique_id`, `ds`, `mean`, and a column for each level."""

    predictions: list[FrameRecord]


def run_invocation(
    body: Body, model: DeployedModel | None, settings: Settings, deadline: Deadline
) -> tuple[bytes, int]:
    """The answer in the shape of the request, and how many series it has. Raises Problem."""
    deadline.check()
    fields = parsing.parse_json(body)
    found = fields.value.get("instances") if isinstance(fields.value, dict) else None
    if isinstance(found, list) and found and isinstance(found[0], dict) and "target" in found[0]:
        return _run_deepar(parsing.validate_fields(DeepArRequest, fields), require_model(model), settings, deadline)
    return _run_scoring(parsing.validate_fields(ScoringRequest, fields), require_model(model), settings, deadline)


def _run_deepar(
    request: DeepArRequest, model: DeployedModel, settings: Settings, deadline: Deadline
) -> tuple[bytes, int]:
    learned, told = model.predictor.fitted_model, request.configuration or DeepArConfiguration()
    levels = {str(level): float(level) for level in told.quantiles if "quantiles" in told.output_types}
    if not all(0 < level < 1 for level in levels.values()):
        raise ApiError("invalid_request", "Expected quantiles between 0 and 1. Correct them.", where="configuration")
    ask = ForecastOptions(
        horizon=learned.spec.horizon,
        levels=sorted(set(levels.values())),
        samples=told.num_samples if "samples" in told.output_types else 0,
    )
    series = [_parse_instance(one, learned, place) for place, one in enumerate(request.instances)]
    limits.validate_request_size(ask, series, settings)
    try:
        done = compute_outcomes(series, ask, model, deadline, TokenSigner.from_settings(settings))
    except ApiError as problem:
        if problem.code != "level_out_of_range" or request.configuration is not None:
            raise
        levels = {}  # nobody asked for quantiles, and the model was not calibrated
        done = compute_outcomes(
            series, ask.model_copy(update={"levels": []}), model, deadline, TokenSigner.from_settings(settings)
        )
    predictions = [_build_prediction(one.result, levels, told) for one in done]
    return chunked_json.dumps({"predictions": predictions}), len(done)


def _parse_instance(instance: DeepArInstance, fitted_model: FittedModelProtocol, index: int) -> SeriesInput:
    spec, where = fitted_model.spec, f"instances.{index}"
    categories = [instance.cat] if isinstance(instance.cat, int) else instance.cat or []
    for name, found, names in (
        ("cat", categories, spec.static),
        ("dynamic_feat", instance.dynamic_feat, spec.covariates),
    ):
        if len(found) != len(names):
            raise ApiError(
                "invalid_request",
                f"Expected {len(names)} entries in {name!r}, those of the model's columns ({', '.join(names) or 'none'}); "
                f"found {len(found)}. Correct the instance.",
                where=f"{where}.{name}",
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
    one: dict[str, Any] = {"mean": result.forecast.mean} if "mean" in configuration.output_types else {}
    if levels:
        one["quantiles"] = {name: result.forecast.quantiles[level] for name, level in levels.items()}
    return one if result.paths is None else {**one, "samples": result.paths}


def _run_scoring(
    request: ScoringRequest, model: DeployedModel, settings: Settings, deadline: Deadline
) -> tuple[bytes, int]:
    learned = model.predictor.fitted_model
    spec, frame = learned.spec, request.to_frame()
    further = () if spec.group is None or spec.group in spec.static else (spec.group,)
    ask = ForecastOptions(horizon=request.params.horizon or spec.horizon, levels=request.params.levels)
    limits.validate_frame_size(frame.size, settings)
    try:
        panel = to_panel(
            frame,
            freq=learned.freq,
            covariates=spec.covariates,
            static=(*spec.static, *(name for name in further if name in frame)),
            channels=spec.channels,
        )
    except ForecasterError as error:
        raise ApiError.from_forecaster_error(error) from error
    limits.validate_response_size(ask, len(panel.series), settings)
    limits.validate_history_size(panel.series, settings)
    found = compute_forecasts(list(panel.series), ask, model, deadline.capped(request.params.deadline_ms))
    rows = [row for one in found for row in _forecast_rows(one)]
    return chunked_json.dumps({"predictions": rows}), len(found)


def _forecast_rows(forecast: Forecast | ForecasterError) -> list[dict[str, Any]]:
    if isinstance(forecast, ForecasterError):
        raise ApiError.from_forecaster_error(forecast) from forecast
    columns: dict[str, Sequence[Any]] = {
        "unique_id": [forecast.id] * len(forecast.mean),
        "ds": [stamp if isinstance(stamp, int) else stamp.isoformat() for stamp in forecast.ds.tolist()],
        "mean": forecast.mean.tolist(),
        **{f"{level:g}": values.tolist() for level, values in forecast.quantiles.items()},
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
