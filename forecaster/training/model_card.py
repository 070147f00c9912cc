"""The model card of a bundle, rendered from the facts in its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from forecaster.data.symbols import SYMBOL_SCORES_FACT
from forecaster.engines.statistical.blend import format_blend_weights
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.baselines import SEASONAL_NAIVE
from forecaster.frequency.timestamps import format_timestamp
from forecaster.prediction.bounds import Bounds
from forecaster.prediction.predictor import FittedModel
from forecaster.registry.registry import CHALLENGER
from forecaster.spec import Spec


def render_model_card(model: FittedModel) -> str:
    """Renders the model card: the network, its training data, its scores and its limits."""
    spec, facts = model.spec, model.facts
    lines = [
        f"# {spec.name}",
        "",
        f"{_describe_network(spec)} Frequency `{model.freq}`, context {spec.context} steps, scored up to {spec.horizon}.",
        *_render_blend(model),
        "",
        "## Training data",
        "",
        f"Data set `{facts['data']}`: {facts['series']} series up to {format_timestamp(model.cutoff)} "
        f"(digest `{facts['data_digest'][:12]}`); {facts['left_out']} series were too short. "
        f"{facts['steps']} training steps, seed {spec.training.seed}.{_describe_partial_periods(facts.get('dropped_partial'))}",
        *(["", facts["selection"]] if facts.get("selection") else []),
        "",
        "## Scores",
        "",
    ]
    if facts.get(SYMBOL_SCORES_FACT):
        lines += _render_symbol_scores(spec, facts)
    elif facts["backtest"]:
        lines += [
            f"Rolling origins after the training data: {facts['test_windows']} of {spec.horizon} steps each.",
            "",
            "| forecaster | MASE | RMSSE | sMAPE | MAE |",
            "|---|---|---|---|---|",
            *(
                f"| {name} | {' | '.join('-' if value is None else f'{value:.4g}' for value in scores.values())} |"
                for name, scores in facts["backtest"].items()
            ),
            "",
            *([f"{facts['scale_note']}.", ""] if facts.get("scale_note") else []),
            f"At least as good as seasonal naive up to step {facts['reliable_horizon']}.",
        ]
    else:
        lines.append("Not tested: the model was trained on all data.")
    if facts.get("evaluated_series"):
        lines += ["", describe_sample(facts["evaluated_series"], facts["series"])]
    lines += [
        "",
        "## Limits",
        "",
        f"A history needs at least {spec.min_steps} steps of the same frequency. Forecasts beyond step {spec.horizon} were never "
        f"scored. {_describe_intervals(model)}{'' if spec.head.is_symbolic else f' {Bounds.from_facts(spec, facts).describe()}'}",
        "",
        "```json",
        json.dumps(spec.model_dump(), indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _render_symbol_scores(spec: Spec, facts: Mapping[str, Any]) -> list[str]:
    """Renders the scores of a model of symbols."""
    return [
        f"Rolling origins after the training data: {facts['test_windows']} of {spec.horizon} steps each. Accuracy, cross-entropy "
        "(nats) and perplexity are of the next symbol given all before it; the rollout reads its own predictions.",
        "",
        "| forecaster | accuracy | cross-entropy | perplexity | accuracy of the rollout |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {' | '.join('-' if value is None else f'{value:.4g}' for value in scores.values())} |"
            for name, scores in facts[SYMBOL_SCORES_FACT].items()
        ),
    ]


def _describe_network(spec: Spec) -> str:
    """Describes the recurrent layers, the decoder and the members in one or two sentences."""
    network = spec.network
    cell = {"gru": "A GRU", "lstm": "An LSTM", "elman": "An Elman", "relu": "A rectified Elman"}[network.cell]
    if spec.decoder == "direct":
        decoder = (
            f"predicts {_count(spec.block, 'step')} at once (direct decoder) and repeats this for a longer horizon"
        )
    else:
        decoder = (
            f"predicts {_count(spec.segment, 'step')} at a time and reads its own predictions for the next (rollout)"
        )
        unit = "step" if spec.segment == 1 else "segment"
        if spec.training.unroll:
            decoder += f", in training too for up to {_count(spec.training.unroll, unit)}"
    members = f" The forecast is the median of {spec.members} such networks with different seeds." * (spec.members > 1)
    layers = f"{_count(network.layers, 'layer')} of {_count(network.hidden, 'unit')}"
    return f"{cell} network ({layers}) that {decoder}.{members}"


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def describe_sample(counts: Mapping[str, int], num_series: int) -> str:
    """Describes in a sentence on how many series a model of very many series was calibrated and tested."""
    verbs = {"calibration": "intervals calibrated on", "test": "the scores measured on"}
    parts = " and ".join(f"{verbs[name]} {count}" for name, count in counts.items())
    return f"Evenly chosen series stand for all: {parts} of the {num_series} series."


def _describe_partial_periods(count: int | None) -> str:
    """Describes the incomplete last periods that were treated as missing; no text if that was not requested."""
    if count is None:
        return ""
    return f" Values of incomplete last periods were treated as missing, in {count} series."


def _render_blend(model: FittedModel) -> list[str]:
    """Describes the weights of a blend, and how they were chosen."""
    if not model.blend_weights:
        return []
    facts = model.facts["blend"]
    reason = {
        "network": "the network alone was as good as a blend",
        "equal": "equal weights were better than the network alone, and no other weights were clearly better",
        "optimal": "they were clearly better than the network alone and than equal weights",
    }[facts["chosen"]]
    errors = ", ".join(f"{name} {'-' if error is None else f'{error:.4g}'}" for name, error in facts["errors"].items())
    measured = f" (MASE on these windows: {errors})" if errors else ""
    return [
        "",
        f"Blend: {format_blend_weights(model.blend_weights)}. The weights were chosen on the validation windows: "
        f"{reason}{measured}. In the scores below, `network` is the network alone.",
    ]


def _describe_intervals(model: FittedModel) -> str:
    """Describes how far the prediction intervals can be trusted."""
    if model.spec.head.is_symbolic:
        return (
            f"The model predicts {len(model.spec.head.vocabulary)} symbols and has no intervals; symbols outside of its "
            "vocabulary are read as unknown and never predicted."
        )
    if model.calibration is None:
        return "The model was not calibrated: it gives point forecasts only."
    table, is_head = model.calibration.table_for(), model.calibration.unit == "head"
    method = {
        "ranks": "by the ranks of the actuals among the quantiles of the network"
        if is_head
        else "from the ranks of the errors",
        "gaussian": "and are those of the network, because there were too few"
        if is_head
        else "from the spread of few errors under a Gaussian assumption",
        "assumed": "without any observed error: do not trust them",
    }[table.basis]
    return (
        f"Intervals were calibrated on {table.windows} windows before the test, {method}; they are valid while future errors "
        "resemble the errors on these windows."
    )


def compute_reliable_horizon(result: Backtest, forecaster_name: str = CHALLENGER) -> int:
    """Returns the last step up to which a forecaster was at least as good as seasonal naive at every step."""
    mase, baseline_mase = result.mase_by_step(forecaster_name), result.mase_by_step(SEASONAL_NAIVE)
    is_good = mase <= baseline_mase  # False where nothing was measured (NaN)
    return result.horizon if is_good.all() else int(np.argmin(is_good))


def replace_nonfinite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Returns scores that JSON can represent: None for a score that could not be computed."""
    return {name: value if np.isfinite(value) else None for name, value in scores.items()}
