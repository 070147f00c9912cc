"""Accuracy against computing time on the eight short panels: the pretrained network, fine-tuned, trained, AutoETS and Theta.

    python benchmarks/seconds.py             all methods; writes benchmarks/results/seconds.md and seconds.png
    python benchmarks/seconds.py --table     the same from the cached results

Each method gets the data before the last window and forecasts it. Seconds are those of one core: fitting, if any, and the
forecasts of all series. Trained: the middle variant of each preset, one network, with its refit; nothing is selected. Statistical
models are those of statsforecast, in one process.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from accuracy import SHORT_SETS, BenchmarkSet, load_panel, training_panel

from forecaster.bundle.pretrained.base import specialize_base
from forecaster.data.calendar import default_season
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import ForecastFunction, statistical_baseline
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage import atomic
from forecaster.training.base_variants import build_base_variants
from forecaster.training.fit import fit, refit
from forecaster.training.presets import build_candidate_specs

ROOT = Path(__file__).parent.parent
CACHE_FOLDER = ROOT / ".forecaster" / "seconds"
RESULT = ROOT / "benchmarks" / "results" / "seconds.md"
PICTURE = RESULT.with_suffix(".png")
SEED = 0


class Measurement(NamedTuple):
    """The error on the last window, and the seconds of one core that it took."""

    mase: float
    naive: float
    seconds: float


def fit_spec(train: Panel, spec: Spec) -> Predictor:
    """Fits a specification without choosing anything, and again on all data where it says so."""
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"seed": SEED})})
    fitted = fit(train, spec, accelerator="cpu")
    return Predictor(refit(train, fitted, accelerator="cpu") if spec.training.refit else fitted.model)


def zero_shot(_: Panel, dataset: BenchmarkSet) -> Predictor:
    """Returns the pretrained network as it is."""
    return Predictor(specialize_base(dataset.freq, horizon=dataset.horizon, season=default_season(dataset.freq)))


def fine_tuned(train: Panel, dataset: BenchmarkSet) -> Predictor:
    """Returns the pretrained network after 100 steps; without any where a panel is too small for the variant."""
    presets = build_candidate_specs(train, horizon=dataset.horizon, name="seconds")
    return fit_spec(train, build_base_variants(train, presets[0])[-1])


def trained(train: Panel, dataset: BenchmarkSet) -> Predictor:
    """Returns a network of the preset, trained from random weights."""
    presets = build_candidate_specs(train, horizon=dataset.horizon, name="seconds")
    return fit_spec(train, presets[len(presets) // 2])


def statistical(name: str) -> Callable[[Panel, BenchmarkSet], ForecastFunction]:
    """Returns a method that fits a statistical model to each series."""

    def build(_: Panel, dataset: BenchmarkSet) -> ForecastFunction:
        return statistical_baseline(name, season=default_season(dataset.freq), jobs=1)

    return build


METHODS: dict[str, Callable[[Panel, BenchmarkSet], Any]] = {
    "pretrained": zero_shot,
    "fine-tuned": fine_tuned,
    "trained": trained,
    "AutoETS": statistical("auto_ets"),
    "dynamic Theta": statistical("dynamic_optimized_theta"),
}


def measure(name: str, method: str, folder: Path) -> Measurement:
    """Fits and forecasts one set by one method."""
    dataset = SHORT_SETS[name]
    panel = load_panel(dataset, folder)
    train = training_panel(panel, dataset)
    started = time.process_time()
    forecaster = METHODS[method](train, dataset)
    result = backtest(
        panel, {method: forecaster}, horizon=dataset.horizon, windows=1, season=dataset.season, min_history=2
    )
    seconds = time.process_time() - started
    mase = result.scores(method)["mase"]
    return Measurement(float(mase), dataset.published["seasonal naive"], seconds)


def report_lines(results: dict[str, dict[str, Measurement]]) -> Iterator[str]:
    """Yields the lines of the report."""
    yield "# Accuracy against seconds"
    yield ""
    yield (
        "`python benchmarks/seconds.py`: MASE of the last window of the eight short panels over that of seasonal naive (their "
        "geometric mean), and seconds of one core for all series: fitting, if any, and forecasts. Seed 0. Trained: one network "
        "of the middle variant of each preset; nothing is selected. Statistical models are those of statsforecast in one process."
    )
    yield ""
    yield "| method | geometric mean | s | by set |"
    yield "|---|---|---|---|"
    for method, sets in results.items():
        ratio, seconds = summarize(sets)
        cells = ", ".join(f"{name} {item.mase:.3f} ({item.seconds:.1f} s)" for name, item in sets.items())
        yield f"| {method} | {ratio:.3f} | {seconds:.1f} | {cells} |"
    yield ""
    yield "![Accuracy against seconds](seconds.png)"


def summarize(sets: dict[str, Measurement]) -> tuple[float, float]:
    """Returns the geometric mean of the errors over those of seasonal naive, and the seconds of all sets."""
    ratio = float(np.exp(np.mean([np.log(item.mase / item.naive) for item in sets.values()])))
    return ratio, sum(item.seconds for item in sets.values())


def draw(results: dict[str, dict[str, Measurement]]) -> None:
    """Draws the geometric means against the seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for method, sets in results.items():
        ratio, seconds = summarize(sets)
        axes.plot(seconds, ratio, "o", color="tab:gray" if method in ("AutoETS", "dynamic Theta") else "tab:blue")
        axes.annotate(f"{method}: {ratio:.3f}", (seconds, ratio), xytext=(7, 4), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="seconds of one core, all series", ylabel="MASE over seasonal naive (geometric mean)")
    axes.set_xlim(right=axes.get_xlim()[1] * 4)
    axes.grid(color="0.9")
    figure.savefig(PICTURE, dpi=100)


def main() -> None:
    """Measures what is missing, and writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write the table from the cached results and exit")
    options = parser.parse_args()
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("Expected the folder shared/data in or beside the checkout; found none. Put the data sets there.")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results: dict[str, dict[str, Measurement]] = {}
    for method in METHODS:
        for name in SHORT_SETS:
            cache_file = CACHE_FOLDER / f"{method}-{name}.json"
            if not cache_file.exists() and not options.table:
                atomic.write_text(cache_file, json.dumps(measure(name, method, folder)._asdict()))
                print(f"{method}, {name}: {cache_file.read_text()}", flush=True)
            if cache_file.exists():
                results.setdefault(method, {})[name] = Measurement(**json.loads(cache_file.read_text()))
    RESULT.write_text("\n".join(report_lines(results)) + "\n")
    draw(results)
    print(f"wrote {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
