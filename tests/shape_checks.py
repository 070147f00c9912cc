"""Checks shapes and types while tests run: every annotation of `forecaster`, in calls and in records."""

from __future__ import annotations

import inspect
import sys
from dataclasses import is_dataclass
from functools import partial, wraps
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple, Self, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, install_import_hook, jaxtyped

# Modules with NamedTuples; the import hook handles only functions and dataclasses.
MODULES_WITH_RECORDS = [
    "forecaster.batch.reading",
    "forecaster.batch.scores",
    "forecaster.batch.shard",
    "forecaster.batch.shuffle",
    "forecaster.data.encoding",
    "forecaster.data.forecast_table",
    "forecaster.prediction.bounds",
    "forecaster.prediction.scaled_range",
    "forecaster.engines.statistical.blend",
    "forecaster.data.calendar",
    "forecaster.data.frames.columns",
    "forecaster.data.frames.rows",
    "forecaster.data.frames.grid",
    "forecaster.data.frames.timestamps",
    "forecaster.data.partial_periods",
    "forecaster.data.on_disk.windows",
    "forecaster.data.split",
    "forecaster.data.windows",
    "forecaster.engines.engine",
    "forecaster.evaluation.sequential_test",
    "forecaster.explain.plots",
    "forecaster.explain.states",
    "forecaster.explain.associations",
    "forecaster.explain.similar",
    "forecaster.explain.signals",
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
    "forecaster.explain.explained_input",
    "forecaster.explain.faithfulness",
    "forecaster.explain.integrated_gradients",
    "forecaster.engines.onnx.recurrence",
    "forecaster.engines.onnx.runner",
    "forecaster.model.recurrence.cells",
    "forecaster.model.recurrence.vectorized",
    "forecaster.model.recurrence.library",
    "forecaster.model.recurrence.layer",
    "forecaster.engines.kernel",
    "forecaster.model.recurrent",
    "forecaster.model.rollout",
    "forecaster.model.running",
    "forecaster.model.running_statistics",
    "forecaster.model.scaling",
    "forecaster.explain.trace",
    "forecaster.engines.statistical.models",
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
    "forecaster.prediction.symbol_sequences",
    "forecaster.evaluation.symbol_backtest",
]


# A violated annotation raises one class of error, with and without an array in the signature.
_check_types = beartype(conf=BeartypeConf(violation_type=TypeCheckError))


def check_calls(function: Any = None, *, typechecker: Any = _check_types) -> Any:
    """A decorator with the checks of `jaxtyped`, each made once: arguments before the call, the result after it.

    `jaxtyped` binds the arguments of every call and checks them again together with the result, which took three quarters of the
    time of some tests. A signature without arrays has no axes that a call would have to remember.
    """
    if function is None:
        return partial(check_calls, typechecker=typechecker)
    if inspect.isclass(function):
        if is_dataclass(function) and not hasattr(function.__init__, "__wrapped__"):
            function.__init__ = check_calls(function.__init__)  # type: ignore[misc]
        return function
    if not inspect.isfunction(function) or inspect.isgeneratorfunction(function):
        return jaxtyped(function, typechecker=typechecker)
    function.__annotations__ = _resolve_annotations(function)
    checked = _check_types(function)
    has_arrays = any(map(_contains_array, function.__annotations__.values()))

    @wraps(function)
    def check_call(*arguments: Any, **named_arguments: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*arguments, **named_arguments)
        if not has_arrays:
            return checked(*arguments, **named_arguments)
        with jaxtyped("context"):  # remembers the length of each axis
            return checked(*arguments, **named_arguments)

    return check_call


def _resolve_annotations(function: Any) -> dict[str, Any]:
    """Resolves strings. An annotation with a name that is defined later, such as a method's own class, is not checked."""
    resolved: dict[str, Any] = {}
    for name, annotation in function.__annotations__.items():
        holder = SimpleNamespace(__annotations__={name: annotation})
        try:
            hint = get_type_hints(holder, function.__globals__, include_extras=True)[name]
        except (NameError, TypeError):
            hint = Any
        resolved[name] = Any if hint is Self else hint  # beartype sees the function without its class
    return resolved


def _contains_array(hint: Any) -> bool:
    if isinstance(hint, list):  # the arguments of a Callable
        return any(map(_contains_array, hint))
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(map(_contains_array, get_args(hint)))


def install_shape_checks() -> None:
    """Checks every module of forecaster that is imported in this process from here on."""
    assert "forecaster" not in sys.modules, "imported before its shapes could be checked"
    jaxtyping.jaxtyped = check_calls  # the decorator that the import hook adds
    install_import_hook("forecaster", f"{__name__}._check_types")
    for name in MODULES_WITH_RECORDS:
        for _, record_class in inspect.getmembers(import_module(name), inspect.isclass):
            if record_class.__module__ == name and NamedTuple in getattr(record_class, "__orig_bases__", ()):
                _check_record_class(record_class)


def _check_record_class(record_class: Any) -> None:
    # Resolves annotations that are strings.
    record_class.__new__.__annotations__ = get_type_hints(record_class, include_extras=True)
    record_class.__new__ = check_calls(record_class.__new__)
