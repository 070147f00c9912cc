"""What is said of a forecaster: the facts in its manifest, and the model card made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from forecaster.evaluation.backtest import Backtest
from forecaster.frequency import format_timestamp
from forecaster.prediction.predictor import FittedModel
from forecaster.registry.registry import CHALLENGER
from forecaster.statistical.blend import format_blend_weights as tell_blend
from pipelines.promotion.gate import SEASONAL_NAIVE


def render_model_card(forecaster: FittedModel) -> str:
    """The model card: what it is, what it was trained on, how it did, and where its limits are."""
    spec, facts = forecaster.spec, forecaster.facts
    lines = [
        f"# {spec.name}",
        "",
        f"A {spec.network.cell.upper()} network ({spec.network.layers} x {spec.network.hidden}) that feeds back its own "
        f"output, step by step. Frequency `{forecaster.freq}`, context {spec.context} steps, scored up to {spec.horizon}.",
        *_render_blend(forecaster),
        "",
        "## Trained on",
        "",
        f"Data set `{facts['data']}`: {facts['series']} series up to {format_timestamp(forecaster.cutoff)} "
        f"(digest `{facts['data_digest'][:12]}`); {facts['left_out']} series were too short. "
        f"{facts['steps']} steps, seed {spec.training.seed}.",
        "",
        "## Scores",
        "",
    ]
    if facts["backtest"]:
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
            f"At least as good as seasonal naive up to step {facts['reliable_horizon']}.",
        ]
    else:
        lines.append("Not tested: it was trained on everything there was.")
    lines += [
        "",
        "## Limits",
        "",
        f"Histories need {spec.min_steps} steps or more of the same frequency. Forecasts beyond step {spec.horizon} were never "
        f"scored. {_describe_intervals(forecaster)}",
        "",
        "```json",
        json.dumps(spec.model_dump(), indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _render_blend(forecaster: FittedModel) -> list[str]:
    """What the forecasts are besides the network's, and how that was chosen."""
    if not forecaster.blend_weights:
        return []
    found = forecaster.facts["blend"]
    how = {
        "network": "the network alone was as good as a blend",
        "equal": "equal weights were better than the network alone, and no others were clearly better",
        "optimal": "clearly better than the network alone and than equal weights",
    }[found["chosen"]]
    errors = ", ".join(f"{name} {'-' if error is None else f'{error:.4g}'}" for name, error in found["errors"].items())
    measured = f" (MASE there: {errors})" if errors else ""
    return [
        "",
        f"Blend: {tell_blend(forecaster.blend_weights)}. The weights are from the validation windows: {how}{measured}. In the scores "
        "below `network` is the network alone.",
    ]


def _describe_intervals(forecaster: FittedModel) -> str:
    """How far the intervals can be trusted."""
    if forecaster.calibration is None:
        return "It was not calibrated: there are point forecasts only."
    table = forecaster.calibration.table_for()
    how = {
        "ranks": "from the ranks of its errors",
        "gaussian": "from the spread of its few errors, as if they were Gaussian",
        "assumed": "without having seen an error: do not trust them",
    }[table.basis]
    return (
        f"Intervals were calibrated on {table.windows} windows before the test, {how}; they hold where the future's errors "
        "are like those."
    )


def compute_reliable_horizon(result: Backtest, forecaster_name: str = CHALLENGER) -> int:
    """The last step up to which a forecaster was seen to be at least as good as seasonal naive at every step."""
    good = result.mase_by_step(forecaster_name) <= result.mase_by_step(
        SEASONAL_NAIVE
    )  # not so where nothing was measured
    return result.horizon if good.all() else int(np.argmin(good))


def replace_nonfinite(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores as JSON can hold them: None for what could not be computed."""
    return {name: value if np.isfinite(value) else None for name, value in scores.items()}
