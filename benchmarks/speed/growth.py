"""How the time of a training step and of a forecast grows with series, context, horizon and hidden size.

    python benchmarks/speed/growth.py            about five minutes
    python benchmarks/speed/growth.py --smoke    tiny sizes, written nowhere, to see whether it runs

Writes benchmarks/results/growth.md and growth.png. The exponent is the slope between logarithms over the larger half of the
sizes, where what is paid once a call weighs least: 0 does not grow, 1 grows in proportion.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cases import SHORT_STEPS, SpeedCase, make_histories, make_values
from forecaster_cases import fit_one_step, make_panel, make_spec
from matplotlib.figure import Figure
from timing import time_once, time_per_call, time_per_step

from forecaster.prediction.predictor import Predictor
from forecaster.training.fit import fit

RESULTS = Path(__file__).parent.parent / "results"
DEFAULT_CASE = SpeedCase(
    "growth", "growth", context=96, batch=64, horizon=24, steps=SHORT_STEPS + 20, series=64, length=600
)
MEASUREMENT_TITLES = {
    "step": "a training step",
    "forecast": "a forecast of all series",
    "begin": "beginning and ending a training",
}

# By what is varied: the sizes, what is measured at each, and how fast it may grow.
SWEEPS: dict[str, tuple[Sequence[int], Mapping[str, float]]] = {
    "series": ((16, 64, 256, 1024, 4096), {"step": 0.0, "forecast": 1.0, "begin": 1.0}),
    "context": ((24, 48, 96, 192, 384), {"step": 1.0, "forecast": 1.0}),
    "horizon": ((12, 24, 48, 96, 192), {"step": 1.0, "forecast": 1.0}),
    "hidden": ((16, 32, 64, 128, 256), {"step": 2.0, "forecast": 2.0}),
}
TINY_SIZES = {"series": (2, 4, 8), "context": (6, 12, 24), "horizon": (2, 4, 8), "hidden": (2, 4, 8)}
EXPONENT_TOLERANCE = 0.15  # of an exponent, for noise and for caches that overflow


class GrowthCurve(NamedTuple):
    """What was measured at each size."""

    sizes: Sequence[int]
    seconds: Sequence[float]
    max_exponent: float

    @property
    def exponent(self) -> float:
        """Of the larger half of the sizes."""
        half = len(self.sizes) // 2
        return float(np.polyfit(np.log(self.sizes[half:]), np.log(self.seconds[half:]), 1)[0])


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of every size; the median counts")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, written nowhere")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # so that the time of all cores is the time it takes, whoever else is there
    curves: dict[tuple[str, str], GrowthCurve] = {}
    for varied, (sizes, bounds) in SWEEPS.items():
        some = TINY_SIZES[varied] if options.smoke else sizes
        for what, found in measure_sweep(varied, some, bounds, repeats=1 if options.smoke else options.repeats).items():
            curves[varied, what] = found
            print(
                f"{MEASUREMENT_TITLES[what]} against {varied}: exponent {found.exponent:.2f}",
                file=sys.stderr,
                flush=True,
            )
    text = format_report(curves)
    print(text)
    if not options.smoke:
        (RESULTS / "growth.md").write_text(text)
        plot_curves(curves).savefig(RESULTS / "growth.png", dpi=120)


def measure_sweep(
    dimension: str, sizes: Sequence[int], bounds: Mapping[str, float], *, repeats: int
) -> dict[str, GrowthCurve]:
    """The curves of one sweep; the sizes take turns, so that a busy minute hits all of them."""
    acts = {
        (what, size): MEASUREMENTS[what](dimension, case_at_size(dimension, size)) for what in bounds for size in sizes
    }
    found: dict[tuple[str, int], list[float]] = {key: [] for key in acts}
    for turn in range(repeats + 1):
        for key, act in acts.items():
            seconds = act()
            if turn:  # the first warms up
                found[key].append(seconds)
    return {
        what: GrowthCurve(sizes, [max(statistics.median(found[what, size]), 1e-9) for size in sizes], bound)
        for what, bound in bounds.items()
    }


def case_at_size(dimension: str, size: int) -> SpeedCase:
    """The middle case with one size changed, and series long enough for it; few series where they are not what is varied."""
    changed: dict[str, Any] = {dimension: size}
    case = replace(DEFAULT_CASE, **changed)
    return replace(case, length=max(case.length if dimension != "series" else 200, 2 * (case.context + case.horizon)))


def prepare_step(dimension: str, case: SpeedCase) -> Callable[[], float]:
    """A step of training. The horizon is in it with a direct decoder alone: teacher forcing does not look further ahead."""
    known, decoder = make_panel(make_values(case)), "direct" if dimension == "horizon" else "rollout"

    def act(steps: int) -> object:
        return fit(known, make_spec(case, steps=steps).model_copy(update={"decoder": decoder}), accelerator="cpu")

    return lambda: time_per_step(act, few=SHORT_STEPS, many=case.steps).cpu


def prepare_fit_start(_: str, case: SpeedCase) -> Callable[[], float]:
    """A training of one step."""
    known = make_panel(make_values(case))
    return lambda: time_once(lambda: fit(known, make_spec(case, steps=1), accelerator="cpu")).cpu


def prepare_forecast(_: str, case: SpeedCase) -> Callable[[], float]:
    """`Predictor.forecast_batch` of all series at once."""
    predictor, series = Predictor(fit_one_step(case)), list(make_panel(make_histories(case)).series)
    return lambda: time_per_call(lambda: predictor.forecast_batch(series, case.horizon)).cpu


MEASUREMENTS: dict[str, Callable[[str, SpeedCase], Callable[[], float]]] = {
    "step": prepare_step,
    "begin": prepare_fit_start,
    "forecast": prepare_forecast,
}


def format_report(curves: Mapping[tuple[str, str], GrowthCurve]) -> str:
    """A table of times and exponents."""
    lines = [
        "# Growth",
        "",
        f"`python benchmarks/speed/growth.py`, torch {torch.__version__}, CPU, one thread; CPU seconds.",
        f"{DEFAULT_CASE.network_name}, context {DEFAULT_CASE.context}, batch {DEFAULT_CASE.batch}, horizon {DEFAULT_CASE.horizon}, {DEFAULT_CASE.series} series, "
        "one of these varied. Exponents are fitted to the larger half of the sizes; at most 1 is aimed at, and at most 2 of the "
        "hidden size, because a step of a recurrence multiplies a square matrix of that size. The horizon is in a training step "
        f"with a direct decoder alone. Noise is given {EXPONENT_TOLERANCE} of an exponent.",
        "",
        "| against | of | sizes | ms of CPU | exponent | at most | |",
        "|---|---|---|---|---|---|---|",
    ]
    for (varied, what), curve in curves.items():
        ms = ", ".join(f"{1000 * seconds:.3g}" for seconds in curve.seconds)
        within = "holds" if curve.exponent <= curve.max_exponent + EXPONENT_TOLERANCE else "**does not hold**"
        sizes = ", ".join(map(str, curve.sizes))
        lines.append(
            f"| {varied} | {MEASUREMENT_TITLES[what]} | {sizes} | {ms} | {curve.exponent:.2f} | {curve.max_exponent:g} | {within} |"
        )
    return "\n".join([*lines, "", "![Times against sizes, both logarithmic](growth.png)", ""])


def plot_curves(curves: Mapping[tuple[str, str], GrowthCurve]) -> Figure:
    """A panel for each size that is varied, log against log."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for place, varied in zip(panels, SWEEPS, strict=True):
        for (against, what), curve in curves.items():
            if against == varied:
                label = f"{MEASUREMENT_TITLES[what]}: exponent {curve.exponent:.2f}"
                place.plot(curve.sizes, [1000 * seconds for seconds in curve.seconds], marker="o", label=label)
        place.set(xscale="log", yscale="log", xlabel=varied, ylabel="ms of CPU")
        place.set_xticks(SWEEPS[varied][0], [str(size) for size in SWEEPS[varied][0]], minor=False)
        place.set_xticks([], minor=True)
        place.grid(alpha=0.3)
        place.legend(fontsize=8)
    figure.suptitle("Time against size, both axes logarithmic")
    return figure


if __name__ == "__main__":
    main()
