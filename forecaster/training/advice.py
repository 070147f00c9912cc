"""What to say of a training whose test was won by a baseline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.baselines import BASELINES, ZERO_SHOT, format_baseline
from forecaster.registry.registry import CHALLENGER
from forecaster.training.fit import FitResult

_FEW_WINDOWS = 20  # below this number of windows, chance decides between a model and a baseline of similar quality


def advise_on_test(result: Backtest, fitted: FitResult) -> str | None:
    """Returns which baselines are better than a trained model, and what to try; None if none is.

    Args:
        result: The test, in which the model has the name `CHALLENGER`.
        fitted: The fit of the model.
    """
    errors = {format_baseline(name): result.scores(name)["mase"] for name in BASELINES if name in result.forecasts}
    model_error = result.scores(CHALLENGER)["mase"]
    better = [name for name, error in errors.items() if error <= model_error]
    if math.isnan(model_error) or not better:
        return None
    listed = _enumerate([f"{name} {error:.4g}" for name, error in errors.items()])
    suggestions = "; ".join(
        [
            *(["use the pretrained network (`base`) as it is"] if format_baseline(ZERO_SHOT) in better else []),
            *_list_suggestions(result, fitted),
        ]
    )
    return (
        f"On the test windows the model has a MASE of {model_error:.4g}, {listed}: {_enumerate(better)} "
        f"{'are' if len(better) > 1 else 'is'} at least as good as this model. To try: {suggestions}."
    )


def _enumerate(items: Sequence[str]) -> str:
    """Returns the items as they are listed in a sentence: a, b and c."""
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last


def _list_suggestions(result: Backtest, fitted: FitResult) -> Iterator[str]:
    spec, num_windows = fitted.model.spec, result.actual.shape[0] * result.actual.shape[1]
    if not spec.training.refit:  # all presets refit, except the classical recipe
        yield "use the preset of the data's frequency, with a horizon instead of a specification"
    if fitted.epochs > 1 and fitted.best_steps == fitted.steps:
        yield "train longer (training.steps), because the last epoch was the best"
    if not spec.blend:
        yield "blend the network with a statistical model (`blend`)"
    if spec.members == 1:
        yield "average several networks (`members`)"
    if num_windows < _FEW_WINDOWS:
        yield f"test on more windows (`test_windows`), because {num_windows} are little evidence"
