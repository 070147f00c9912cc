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
from serving.deployment.slot import InUse, Learned
from serving.errors import Problem
from serving.forecasting.outcomes import forecasts, in_use, outcomes
from serving.formats import chunked_json, limits, parsing
from serving.formats.chunked_json import packed
from serving.formats.outcome import Answer
from serving.formats.schema import Ask, AskedHistory, GridSeries, Levels, Strict, Text
from serving.formats.state_token import Seal
from serving.formats.timestamps import AskedStamp
from serving.settings import Settings

Cell = int | float | Annotated[str, Field(max_length=200)] | None
Record = dict[Text, Cell]
_DECILES = tuple(f"0.{place}" for place in range(1, 10))


class Instance(Strict):
    """A history as DeepAR takes it; its frequency is the model's."""

    start: AskedStamp
    target: Annotated[list[float | Literal["NaN"] | None], AfterValidator(packed)] = Field(
        description="values, oldest first; null or NaN: not observed"
    )
    cat: int | list[int] | None = Field(
        default=None, description="of the model's static columns in their order, their values as whole numbers"
    )
    dynamic_feat: list[Annotated[list[float], AfterValidator(packed)]] = Field(
        default=[], description="the model's covariates in their order, each of the length of target and horizon"
    )


class Configuration(Strict):
    """What an answer of DeepAR holds."""

    num_samples: int = Field(default=100, ge=1, description="futures, where samples are asked for")
    output_types: list[Literal["mean", "quantiles", "samples"]] = Field(default=["mean", "quantiles"])
    quantiles: list[Annotated[str, Field(pattern=r"^(0?\.[0-9]{1,6}|[1-9](\.[0-9]{1,3})?e-[1-6])$")] | float] = Field(
        default=list(_DECILES), max_length=99, description="levels, as text or numbers"
    )


class DeepArRequest(Strict):
    """What a client of DeepAR sends. The horizon is the model's."""

    instances: list[Instance] = Field(min_length=1)
    configuration: Configuration | None = None


class Prediction(Strict):
    """The forecast of an instance: what the configuration asks for."""

    mean: list[float] = Field(default=[])
    quantiles: dict[str, list[float]] = Field(default={}, description="by level, as the request wrote it")
    samples: list[list[float | None]] = Field(default=[])


class DeepArAnswer(Strict):
    """One prediction for each instance, in order."""

    predictions: list[Prediction]


class Split(Strict):
    """A frame as pandas writes it with orient="split"."""

    columns: list[Text]
    data: list[list[Cell]]
    index: list[Cell] | None = None


class Parameters(Strict):
    """What MLflow calls params."""

    horizon: int | None = Field(default=None, ge=1, description="steps ahead; the model's own, if not given")
    levels: Levels = Field(default=[])
    deadline_ms: int | None = Field(default=None, ge=1)


class ScoringRequest(Strict):
    """What a client of MLflow's scoring sends: a long frame `unique_id, ds, y` in one of its shapes, and parameters."""

    dataframe_split: Split | None = None
    dataframe_records: list[Record] | None = None
    inputs: dict[Text, list[Cell]] | list[Record] | None = None
    instances: list[Record] | None = None
    params: Parameters = Parameters()

    @model_validator(mode="after")
    def _one_shape(self) -> ScoringRequest:
        shapes = (self.dataframe_split, self.dataframe_records, self.inputs, self.instances)
        if sum(one is not None for one in shapes) != 1:
            raise ValueError("Expected one of dataframe_split, dataframe_records, inputs and instances")
        return self

    def frame(self) -> pd.DataFrame:
        """The frame; raises Problem (422) where its rows, or its columns, are of different lengths."""
        split, inputs = self.dataframe_split, self.inputs
        columns: Sequence[Sequence[Cell]] = list(inputs.values()) if isinstance(inputs, dict) else ()
        if len({len(column) for column in columns}) > 1 or (
            split is not None and any(len(row) != len(split.columns) for row in split.data)
        ):
            raise Problem("invalid_request", "Expected a frame with a cell for each row and column. Correct it.")
        if split is not None:
            frame = pd.DataFrame(split.data, columns=split.columns)
        else:
            frame = pd.DataFrame(self.dataframe_records or self.instances or inputs)
        told = [] if "ds" not in frame else frame.loc[:, "ds"].to_numpy().ravel().tolist()
        if len({isinstance(one, str) for one in told}) > 1 or any(isinstance(one, float) for one in told):
            raise Problem(
                "invalid_request", "Expected stamps as texts, or all as whole numbers. Correct the column.", where="ds"
            )
        return frame


class ScoringAnswer(Strict):
    """A row for each series and step ahead: `unique_id`, `ds`, `mean`, and a column for each level."""

    predictions: list[Record]


def answer(body: Body, model: InUse | None, settings: Settings, deadline: Deadline) -> tuple[bytes, int]:
    """The answer in the shape of the request, and how many series it has. Raises Problem."""
    deadline.check()
    fields = parsing.parse(body)
    found = fields.value.get("instances") if isinstance(fields.value, dict) else None
    if isinstance(found, list) and found and isinstance(found[0], dict) and "target" in found[0]:
        return _deepar(parsing.validated(DeepArRequest, fields), in_use(model), settings, deadline)
    return _scoring(parsing.validated(ScoringRequest, fields), in_use(model), settings, deadline)


def _deepar(asked: DeepArRequest, model: InUse, settings: Settings, deadline: Deadline) -> tuple[bytes, int]:
    learned, told = model.predictor.forecaster, asked.configuration or Configuration()
    levels = {str(level): float(level) for level in told.quantiles if "quantiles" in told.output_types}
    if not all(0 < level < 1 for level in levels.values()):
        raise Problem("invalid_request", "Expected quantiles between 0 and 1. Correct them.", where="configuration")
    ask = Ask(
        horizon=learned.spec.horizon,
        levels=sorted(set(levels.values())),
        samples=told.num_samples if "samples" in told.output_types else 0,
    )
    series = [_history(one, learned, place) for place, one in enumerate(asked.instances)]
    limits.check(ask, series, settings)
    try:
        done = outcomes(series, ask, model, deadline, Seal.of(settings))
    except Problem as problem:
        if problem.code != "level_out_of_range" or asked.configuration is not None:
            raise
        levels = {}  # nobody asked for quantiles, and the model was not calibrated
        done = outcomes(series, ask.model_copy(update={"levels": []}), model, deadline, Seal.of(settings))
    predictions = [_prediction(one.found, levels, told) for one in done]
    return chunked_json.dumps({"predictions": predictions}), len(done)


def _history(one: Instance, learned: Learned, place: int) -> AskedHistory:
    spec, where = learned.spec, f"instances.{place}"
    categories = [one.cat] if isinstance(one.cat, int) else one.cat or []
    for name, found, names in (("cat", categories, spec.static), ("dynamic_feat", one.dynamic_feat, spec.covariates)):
        if len(found) != len(names):
            raise Problem(
                "invalid_request",
                f"Expected {len(names)} entries in {name!r}, those of the model's columns ({', '.join(names) or 'none'}); "
                f"found {len(found)}. Correct the instance.",
                where=f"{where}.{name}",
            )
    return GridSeries.model_construct(
        id=where,
        start=one.start,
        freq=learned.freq,
        y=np.array(one.target, dtype=np.float64),  # type: ignore[arg-type]  # null and "NaN" become NaN
        covariates=dict(zip(spec.covariates, one.dynamic_feat, strict=True)),
        static=dict(zip(spec.static, map(str, categories), strict=True)),
        channels={},
    )


def _prediction(found: Answer | ForecasterError, levels: dict[str, float], told: Configuration) -> dict[str, Any]:
    if isinstance(found, ForecasterError):
        raise Problem.of(found) from found
    one: dict[str, Any] = {"mean": found.forecast.mean} if "mean" in told.output_types else {}
    if levels:
        one["quantiles"] = {name: found.forecast.quantiles[level] for name, level in levels.items()}
    return one if found.paths is None else {**one, "samples": found.paths}


def _scoring(asked: ScoringRequest, model: InUse, settings: Settings, deadline: Deadline) -> tuple[bytes, int]:
    learned = model.predictor.forecaster
    spec, frame = learned.spec, asked.frame()
    further = () if spec.group is None or spec.group in spec.static else (spec.group,)
    ask = Ask(horizon=asked.params.horizon or spec.horizon, levels=asked.params.levels)
    limits.check_cells(frame.size, settings)
    try:
        panel = to_panel(
            frame,
            freq=learned.freq,
            covariates=spec.covariates,
            static=(*spec.static, *(name for name in further if name in frame)),
            channels=spec.channels,
        )
    except ForecasterError as error:
        raise Problem.of(error) from error
    limits.check_ask(ask, len(panel.series), settings)
    limits.check_histories(panel.series, settings)
    found = forecasts(list(panel.series), ask, model, deadline.within(asked.params.deadline_ms))
    rows = [row for one in found for row in _rows(one)]
    return chunked_json.dumps({"predictions": rows}), len(found)


def _rows(one: Forecast | ForecasterError) -> list[dict[str, Any]]:
    if isinstance(one, ForecasterError):
        raise Problem.of(one) from one
    columns: dict[str, Sequence[Any]] = {
        "unique_id": [one.id] * len(one.mean),
        "ds": [stamp if isinstance(stamp, int) else stamp.isoformat() for stamp in one.ds.tolist()],
        "mean": one.mean.tolist(),
        **{f"{level:g}": values.tolist() for level, values in one.quantiles.items()},
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
