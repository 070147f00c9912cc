"""Checks shapes and types while tests run: every annotation of `forecaster`, in calls and in records."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, Self, TypeVar, get_type_hints

from beartype import beartype
from jaxtyping import install_import_hook, jaxtyped

Function = TypeVar("Function", bound=Callable[..., Any])

# Modules with NamedTuples; the import hook handles only functions and dataclasses.
MODULES_WITH_RECORDS = [
    "forecaster.data.encoding",
    "forecaster.prediction.bounds",
    "forecaster.prediction.scaled_range",
    "forecaster.statistical.blend",
    "forecaster.data.calendar",
    "forecaster.data.frames.columns",
    "forecaster.data.frames.rows",
    "forecaster.data.frames.grid",
    "forecaster.data.frames.timestamps",
    "forecaster.data.partial_periods",
    "forecaster.data.windows",
    "forecaster.engines.engine",
    "forecaster.evaluation.sequential_test",
    "forecaster.explain.plots",
    "forecaster.evaluation.backtest",
    "forecaster.evaluation.blend_weights",
    "forecaster.evaluation.drift_detection",
    "forecaster.evaluation.rolling_origins",
    "forecaster.evaluation.bootstrap",
    "forecaster.evaluation.interval_reliability",
    "forecaster.ledger.accuracy",
    "forecaster.evaluation.scores",
    "forecaster.evaluation.significance",
    "forecaster.evaluation.validation",
    "forecaster.explain.attribution",
    "forecaster.engines.onnx.recurrence",
    "forecaster.engines.onnx.runner",
    "forecaster.model.recurrence.equations",
    "forecaster.model.recurrence.library",
    "forecaster.model.recurrence.layer",
    "forecaster.engines.kernel",
    "forecaster.model.recurrent",
    "forecaster.model.rollout",
    "forecaster.model.running",
    "forecaster.model.running_statistics",
    "forecaster.model.scaling",
    "forecaster.explain.trace",
    "forecaster.statistical.models",
    "forecaster.synthetic.mixtures",
    "forecaster.synthetic.sampling",
    "forecaster.synthetic.training_batches",
    "forecaster.training.loss",
    "forecaster.training.pretraining.networks",
    "forecaster.evaluation.one_standard_error",
    "forecaster.engines.running.engine",
    "forecaster.engines.running.layers",
    "forecaster.engines.running.network",
    "forecaster.engines.running.past",
    "forecaster.prediction.shape_range",
    "forecaster.data.frames.other_columns",
]


def typechecker(function: Function) -> Function:
    """Applies beartype without `Self`: jaxtyping passes single functions, and a `Self` outside its class is an error."""
    for name, hint in list(function.__annotations__.items()):
        if hint is Self:
            function.__annotations__[name] = Any
    return beartype(function)


def install_shape_checks() -> None:
    """Checks every module of forecaster that is imported in this process from here on."""
    assert "forecaster" not in sys.modules, "imported before its shapes could be checked"
    install_import_hook("forecaster", f"{__name__}.typechecker")
    for name in MODULES_WITH_RECORDS:
        for _, record_class in inspect.getmembers(import_module(name), inspect.isclass):
            if record_class.__module__ == name and NamedTuple in getattr(record_class, "__orig_bases__", ()):
                _check_record_class(record_class)


def _check_record_class(record_class: Any) -> None:
    # Resolves annotations that are strings.
    record_class.__new__.__annotations__ = get_type_hints(record_class, include_extras=True)
    record_class.__new__ = jaxtyped(record_class.__new__, typechecker=typechecker)
