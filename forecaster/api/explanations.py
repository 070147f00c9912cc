"""The explanation of one forecast: the attribution to the values of its series, and the memory of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forecaster.api.figures import show_in_notebooks
from forecaster.api.frames import FrameStyle
from forecaster.api.reading import PanelInput, select_ids
from forecaster.errors import InputError
from forecaster.installation import require_package
from forecaster.prediction.fitted_model import FittedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from forecaster.explain.attribution import Explanation


@dataclass(frozen=True, eq=False)
class ForecastExplanation:
    """Why a forecast is as it is: the effect of each observed value, and the memory of the network.

    Attributes:
        explanation: All results (`forecaster.explain.attribution`); its `notes` say what they cover.
    """

    explanation: Explanation
    _style: FrameStyle

    def to_frame(self) -> Any:
        """Returns one row per step: `ds, y, attribution`, those of other columns, `influence`, gates and norm of each layer."""
        from forecaster.explain.plots import build_explanation_table

        return self._style.convert(build_explanation_table(self.explanation))

    def plot(self) -> Figure:
        """Plots the history, the attribution of its values, the influence of each step, the gates and the faithfulness."""
        require_package("matplotlib", purpose="plots")
        from forecaster.explain.plots import plot_explanation

        return show_in_notebooks(plot_explanation(self.explanation, title=self.explanation.id))

    def __repr__(self) -> str:
        from forecaster.explain.faithfulness import OURS

        explained = self.explanation
        half_life = "none" if explained.half_life is None else f"{explained.half_life:.3g} steps"
        measured = explained.faithfulness
        faithfulness = ""
        if measured is not None:
            faithfulness = (
                f"faithfulness (AOPCR): {measured.aopcr[OURS]:.3g}, of a random order {measured.aopcr['random']:.3g}; "
            )
        return (
            f"ForecastExplanation of {explained.id!r}: the mean of the next {explained.horizon} steps is "
            f"{explained.forecast:.4g} = {explained.baseline:.4g} + the attributions of {len(explained.y)} values; "
            f"{faithfulness}half-life of the memory: {half_life}. Use .plot() and .to_frame()."
        )


def explain_forecast(
    model: FittedModel,
    data: PanelInput,
    unique_id: Any,
    *,
    horizon: int,
    steps: int,
    faithfulness: bool,
) -> ForecastExplanation:
    """Explains the forecast of one series of a panel.

    Args:
        model: The model.
        data: The histories.
        unique_id: The series; None if there is only one.
        horizon: Steps ahead.
        steps: The number of latest steps to explain; at most those that the attribution supports.
        faithfulness: Whether to measure how faithful the attributions are.
    Raises:
        InputError: The data have no such series, or several and none was chosen.
    """
    from forecaster.explain.attribution import MAX_STEPS, explain

    available = [series.id for series in data.panel.series]
    if unique_id is None and len(available) > 1:
        raise InputError(
            f"Expected `unique_id`, because the data have {len(available)} series; found none. Name one of them, such as "
            f"{available[0]!r}.",
            where="unique_id",
        )
    chosen = (
        available[0] if unique_id is None else select_ids(available, [unique_id], max_ids=1, argument="unique_id")[0]
    )
    explanation = explain(
        model,
        data.panel.series[available.index(chosen)],
        horizon=horizon,
        steps=min(steps, MAX_STEPS),
        faithfulness=faithfulness,
    )
    return ForecastExplanation(explanation, data.style)
