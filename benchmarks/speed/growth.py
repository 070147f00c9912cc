"""Growth of the time of a training step and of a forecast with series, context, horizon and hidden size.

    python benchmarks/speed/growth.py            about five minutes
    python benchmarks/speed/growth.py --smoke    tiny sizes, no file, to check that it runs

Writes benchmarks/results/growth.md and growth.png. The exponent is the slope between logarithms over the larger half of the
sizes, where fixed costs per call weigh least: 0 means no growth, 1 proportional growth.
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
    "begin": "start and end of a training",
}

# By varied dimension: the sizes, and the measurements with their largest permitted exponent.
SWEEPS: dict[str, tuple[Sequence[int], Mapping[str, float]]] = {
    "series": ((16, 64, 256, 1024, 4096), {"step": 0.0, "forecast": 1.0, "begin": 1.0}),
    "context": ((24, 48, 96, 192, 384), {"step": 1.0, "forecast": 1.0}),
    "horizon": ((12, 24, 48, 96, 192), {"step": 1.0, "forecast": 1.0}),
    "hidden": ((16, 32, 64, 128, 256), {"step": 2.0, "forecast": 2.0}),
}
TINY_SIZES = {"series": (2, 4, 8), "context": (6, 12, 24), "horizon": (2, 4, 8), "hidden": (2, 4, 8)}
EXPONENT_TOLERANCE = 0.15  # added to an exponent, for noise and cache overflows


class GrowthCurve(NamedTuple):
    """The measurements at each size."""

    sizes: Sequence[int]
    seconds: Sequence[float]
    max_exponent: float

    @property
    def exponent(self) -> float:
        """The fitted exponent over the larger half of the sizes."""
        half = len(self.sizes) // 2
        return float(np.polyfit(np.log(self.sizes[half:]), np.log(self.seconds[half:]), 1)[0])


def main() -> None:
    """Measures, prints, plots and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="repetitions per size; the median counts")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; no file is written")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # so that CPU time is elapsed time, independent of other processes
    curves: dict[tuple[str, str], GrowthCurve] = {}
    for dimension, (sizes, bounds) in SWEEPS.items():
        selected_sizes = TINY_SIZES[dimension] if options.smoke else sizes
        for measurement, curve in measure_sweep(
            dimension, selected_sizes, bounds, repeats=1 if options.smoke else options.repeats
        ).items():
            curves[dimension, measurement] = curve
            print(
                f"{MEASUREMENT_TITLES[measurement]} against {dimension}: exponent {curve.exponent:.2f}",
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
    """Measures the curves of one sweep; the sizes alternate, so that disturbances affect all of them."""
    actions = {
        (measurement, size): MEASUREMENTS[measurement](dimension, case_at_size(dimension, size))
        for measurement in bounds
        for size in sizes
    }
    seconds_by_key: dict[tuple[str, int], list[float]] = {key: [] for key in actions}
    for repeat in range(repeats + 1):
        for key, action in actions.items():
            seconds = action()
            if repeat:  # the first repetition is a warm-up
                seconds_by_key[key].append(seconds)
    return {
        measurement: GrowthCurve(
            sizes, [max(statistics.median(seconds_by_key[measurement, size]), 1e-9) for size in sizes], bound
        )
        for measurement, bound in bounds.items()
    }


def case_at_size(dimension: str, size: int) -> SpeedCase:
    """Returns the default case with one size changed, and with series that are long enough for it."""
    changes: dict[str, Any] = {dimension: size}
    case = replace(DEFAULT_CASE, **changes)
    return replace(case, length=max(case.length if dimension != "series" else 200, 2 * (case.context + case.horizon)))


def prepare_step(dimension: str, case: SpeedCase) -> Callable[[], float]:
    """Prepares a training step. It depends on the horizon only with a direct decoder: teacher forcing looks no further ahead."""
    panel, decoder = make_panel(make_values(case)), "direct" if dimension == "horizon" else "rollout"

    def run_training(steps: int) -> object:
        return fit(panel, make_spec(case, steps=steps).model_copy(update={"decoder": decoder}), accelerator="cpu")

    return lambda: time_per_step(run_training, few=SHORT_STEPS, many=case.steps).cpu


def prepare_fit_start(_: str, case: SpeedCase) -> Callable[[], float]:
    """Prepares a training of one step."""
    panel = make_panel(make_values(case))
    return lambda: time_once(lambda: fit(panel, make_spec(case, steps=1), accelerator="cpu")).cpu


def prepare_forecast(_: str, case: SpeedCase) -> Callable[[], float]:
    """Prepares `Predictor.forecast_batch` of all series in one call."""
    predictor, series = Predictor(fit_one_step(case)), list(make_panel(make_histories(case)).series)
    return lambda: time_per_call(lambda: predictor.forecast_batch(series, case.horizon)).cpu


MEASUREMENTS: dict[str, Callable[[str, SpeedCase], Callable[[], float]]] = {
    "step": prepare_step,
    "begin": prepare_fit_start,
    "forecast": prepare_forecast,
}


def format_report(curves: Mapping[tuple[str, str], GrowthCurve]) -> str:
    """Formats a table of times and exponents."""
    case = DEFAULT_CASE
    lines = [
        "# Growth",
        "",
        f"`python benchmarks/speed/growth.py`, torch {torch.__version__}, CPU, one thread; CPU seconds.",
        f"{case.network_name}, context {case.context}, batch {case.batch}, horizon {case.horizon}, {case.series} series, "
        "one of these varied. Exponents are fitted to the larger half of the sizes; the target is at most 1, and at most 2 for "
        "the hidden size, because a step of a recurrence multiplies a square matrix of that size. A training step depends on the "
        f"horizon only with a direct decoder. The tolerance for noise is {EXPONENT_TOLERANCE}.",
        "",
        "| varied | measured | sizes | CPU ms | exponent | at most | |",
        "|---|---|---|---|---|---|---|",
    ]
    for (dimension, measurement), curve in curves.items():
        ms = ", ".join(f"{1000 * seconds:.3g}" for seconds in curve.seconds)
        verdict = "holds" if curve.exponent <= curve.max_exponent + EXPONENT_TOLERANCE else "**does not hold**"
        sizes = ", ".join(map(str, curve.sizes))
        lines.append(
            f"| {dimension} | {MEASUREMENT_TITLES[measurement]} | {sizes} | {ms} | {curve.exponent:.2f} | "
            f"{curve.max_exponent:g} | {verdict} |"
        )
    return "\n".join([*lines, "", "![Times against sizes, both logarithmic](growth.png)", ""])


def plot_curves(curves: Mapping[tuple[str, str], GrowthCurve]) -> Figure:
    """Plots a panel for each varied size, log against log."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for axes, dimension in zip(panels, SWEEPS, strict=True):
        for (curve_dimension, measurement), curve in curves.items():
            if curve_dimension == dimension:
                label = f"{MEASUREMENT_TITLES[measurement]}: exponent {curve.exponent:.2f}"
                axes.plot(curve.sizes, [1000 * seconds for seconds in curve.seconds], marker="o", label=label)
        axes.set(xscale="log", yscale="log", xlabel=dimension, ylabel="CPU ms")
        axes.set_xticks(SWEEPS[dimension][0], [str(size) for size in SWEEPS[dimension][0]], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle("Time against size, both axes logarithmic")
    return figure


if __name__ == "__main__":
    main()
