"""Faithfulness of attributions: AOPCR of integrated gradients beside random orders, input x gradient and occlusion.

    python benchmarks/faithfulness.py               writes benchmarks/results/faithfulness.md
    python benchmarks/faithfulness.py --selection   the windows before the last, with other references; no file is written
    python benchmarks/faithfulness.py --sets hospital,m3_monthly

Reads the data sets from `shared/data` beside (or in) the checkout, and exits with a message if they are missing. No value of a
test window is read: each history that is explained ends before it, and small networks are trained before the first of them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from forecaster.bundle.pretrained.base import specialize_base
from forecaster.data.frames.panel import to_panel
from forecaster.explain.attribution import SMALL_CHANGE
from forecaster.explain.explained_input import ExplainedInput
from forecaster.explain.faithfulness import measure_faithfulness, predict_with_engine
from forecaster.explain.integrated_gradients import NUM_SPLITS, TOLERANCE, NetworkForecast, integrate_gradients
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel, Series
from forecaster.series.history_summary import history_scale
from forecaster.spec import Spec
from forecaster.training.fit import fit

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "faithfulness.md"
NUM_HISTORIES, STEPS = 24, 256  # histories per set, and the latest steps of each that are explained
RESAMPLES, LEVEL = 2000, 0.95
METHOD = "integrated_gradients"
TRAINING = {
    "steps": 400,
    "epoch_steps": 100,
    "batch": 64,
    "learning_rate": 2e-3,
    "schedule": "cosine",
    "valid_windows": 0,
}


class BenchmarkSet(NamedTuple):
    """A data set, the small network that is trained on it, and the columns that it reads."""

    freq: str
    horizon: int
    season: int
    fields: dict[str, Any]
    covariates: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


SETS = {
    "hospital": BenchmarkSet(
        "MS", 12, 12, {"context": 48, "scaling": "mean_abs", "network": {"cell": "gru", "hidden": 32}}
    ),
    "m3_monthly": BenchmarkSet(
        "MS",
        18,
        12,
        {
            "context": 72,
            "segment": 3,
            "decoder": "direct",
            "scaling": "running",
            "features": "seasonal",
            "base": "mixture",
            "network": {"cell": "lstm", "layers": 2, "hidden": 32, "residual": True},
        },
    ),
    "us_births": BenchmarkSet(
        "D",
        30,
        7,
        {
            "context": 112,
            "segment": 7,
            "decoder": "direct",
            "scaling": "standard",
            "calendar": ("yearday",),
            "network": {"cell": "gru", "hidden": 32},
        },
    ),
    "bike_sharing": BenchmarkSet(
        "h",
        24,
        24,
        {
            "context": 168,
            "segment": 4,
            "decoder": "direct",
            "scaling": "mean_abs",
            "calendar": ("hour",),
            "network": {"cell": "gru", "hidden": 32},
        },
        ("workingday", "weather", "temp", "hum"),
        ("windspeed",),
    ),
    "m4_hourly": BenchmarkSet(
        "h",
        48,
        24,
        {
            "context": 168,
            "segment": 12,
            "lags": (168,),
            "decoder": "direct",
            "scaling": "standard",
            "base": "seasonal_naive",
            "network": {"cell": "gru", "hidden": 32, "layers": 2, "dilations": (1, 2)},
        },
    ),
}


class Case(NamedTuple):
    """The histories of one set that are explained, and the data before the first of them."""

    train: Panel
    histories: list[Series]


class Measurement(NamedTuple):
    """AOPCR by method over histories, in units of the scale of MASE, and what it took."""

    aopcr: dict[str, np.ndarray]
    completeness: np.ndarray
    points: np.ndarray
    seconds: np.ndarray


def load_case(name: str, *, selection: bool) -> Case:
    """Loads the histories before the last window of evenly spaced series, or before the last windows of a single series."""
    benchmark = SETS[name]
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("Expected the data sets in shared/data in or beside the checkout; found none. Put them there.")
    frame = pd.read_parquet(folder / f"{name}.parquet")
    columns = {"covariates": benchmark.covariates, "channels": benchmark.channels}
    panel = to_panel(frame, freq=benchmark.freq, **columns)  # type: ignore[arg-type]
    horizon, skipped = benchmark.horizon, 1 + selection
    if len(panel.series) == 1:
        [series] = panel.series
        first = 1 + NUM_HISTORIES * selection
        ends = [len(series) - horizon * number for number in range(first, first + NUM_HISTORIES)]
        return Case(Panel([series.take_first(min(ends))], panel.freq), [series.take_first(end) for end in ends])
    long = [series for series in panel.series if len(series) > 3 * horizon + benchmark.season]
    train = [series.take_first(len(series) - skipped * horizon) for series in long]
    chosen = np.linspace(0, len(train) - 1, NUM_HISTORIES).astype(int)
    return Case(Panel(train, panel.freq), [train[index] for index in chosen])


def train_network(name: str, case: Case, *, seed: int = 0) -> FittedModel:
    """Trains the small network of a set."""
    benchmark = SETS[name]
    spec = Spec.parse(
        {
            "name": name,
            "horizon": benchmark.horizon,
            "season": benchmark.season,
            "min_history": 6,
            "covariates": benchmark.covariates,
            "channels": benchmark.channels,
            "training": {**TRAINING, "seed": seed},
            **benchmark.fields,
        },
        where="faithfulness.py",
    )
    return fit(case.train, spec, accelerator="cpu").model


Reference = Callable[[ExplainedInput, int], np.ndarray]


def mean_reference(explained: ExplainedInput, _: int) -> np.ndarray:
    """Returns the reference of the library: the mean of the explained values of y and of each channel."""
    return explained.reference


def local_reference(explained: ExplainedInput, season: int) -> np.ndarray:
    """Replaces values of y and of channels by the mean of the season around them (of what there is near the ends)."""
    reference = explained.reference.copy()
    weights = np.ones(2 * (max(season, 5) // 2) + 1)
    if season % 2 == 0:
        weights[[0, -1]] = 0.5
    num_targets = 1 if explained.inputs.channels is None else 1 + explained.inputs.channels.shape[2]
    for first in range(0, num_targets * explained.steps, explained.steps):
        part = slice(first, first + explained.steps)
        values, mean = explained.entries[part], np.nan_to_num(np.nanmean(explained.entries[part]))
        sums = np.convolve(np.nan_to_num(values - mean), weights)[len(weights) // 2 :][: len(values)]
        counts = np.convolve(~np.isnan(values) * 1.0, weights)[len(weights) // 2 :][: len(values)]
        reference[part] = np.where(np.isnan(values), np.nan, mean + sums / counts.clip(min=0.5))
    return reference


REFERENCES: dict[str, Reference] = {"mean": mean_reference, "local mean": local_reference}


def measure(
    models: Sequence[FittedModel],
    histories: Sequence[Series],
    *,
    horizon: int,
    splits: Sequence[int],
    reference: Reference = mean_reference,
) -> Measurement:
    """Explains all histories, with each of several numbers of random halves."""
    rows = []
    for model, series in zip(models, histories, strict=True):
        predictor = Predictor(model)
        inputs = predictor.build_input(series, horizon)
        explained = ExplainedInput.from_input(
            inputs,
            steps=min(STEPS, len(series), inputs.values.shape[1]),
            horizon=horizon,
            channels=tuple(model.spec.channels),
            encoding=model.encoding,
        )
        explained = explained._replace(reference=reference(explained, model.season))
        forecast = NetworkForecast([network.eval() for network in model.networks], explained)
        scale = history_scale(series.y, model.season)
        floor = SMALL_CHANGE * float(np.nanmax(np.abs(explained.entries - explained.reference)[: explained.steps]))
        aopcr, error, points, seconds = {}, 0.0, 0, 0.0
        for count in splits:
            started = time.process_time()
            integral = integrate_gradients(forecast, explained, floor=floor, splits=count)
            result = measure_faithfulness(
                explained,
                forecast.predict if forecast.resumes else predict_with_engine(predictor.engine, explained),
                contributions=integral.contributions,
                final_gradient=integral.final_gradient,
            )
            assert result is not None, "no history is constant"
            aopcr |= {method: value / scale for method, value in result.aopcr.items() if method != METHOD}
            aopcr[label_splits(count)] = result.aopcr[METHOD] / scale
            error = abs(integral.gap) / max(abs(integral.end - integral.start), floor)
            points, seconds = integral.points, time.process_time() - started
        rows.append((aopcr, error, points, seconds))
    methods = {method: np.array([row[0][method] for row in rows]) for method in rows[0][0]}
    return Measurement(methods, *(np.array([row[index] for row in rows]) for index in (1, 2, 3)))


def label_splits(splits: int) -> str:
    """Returns the name of integrated gradients over paths with this number of random halves."""
    return f"{METHOD}, {splits} splits" if splits else f"{METHOD}, straight path"


def bootstrap_interval(values: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """Returns the percentile interval of the mean, over resampled histories (Efron 1979)."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def build_models(name: str, case: Case) -> dict[str, FittedModel]:
    """Returns the small network, trained here, and the pretrained one."""
    benchmark = SETS[name]
    base = specialize_base(benchmark.freq, horizon=benchmark.horizon, season=benchmark.season).to_fitted_model()
    return {"small": train_network(name, case), "pretrained": base}


def main() -> None:
    """Measures all sets, prints the report and writes it to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--selection", action="store_true", help="compare references on the windows before the last")
    parser.add_argument("--sets", default=",".join(SETS), help="names of sets, separated by commas")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    names = options.sets.split(",")
    lines = []
    for line in report_selection(names) if options.selection else report_lines(names):
        print(line, flush=True)
        lines.append(line)
    if not options.selection and set(names) == set(SETS):
        RESULT.write_text("\n".join([*lines, ""]))


def report_selection(names: Sequence[str]) -> Iterator[str]:
    """Yields a table that compares references and numbers of splits on the windows before the last."""
    for name in names:
        case = load_case(name, selection=True)
        for label, model in build_models(name, case).items():
            for reference_name, reference in REFERENCES.items():
                result = measure(
                    [model] * len(case.histories),
                    case.histories,
                    horizon=SETS[name].horizon,
                    splits=(0, 1, NUM_SPLITS),
                    reference=reference,
                )
                cells = [f"{method} {values.mean():.3f}" for method, values in result.aopcr.items()]
                missed = (result.completeness > TOLERANCE).mean()
                yield f"{name}, {label}, {reference_name}: {'; '.join(cells)}; {missed:.0%} not complete"


def report_lines(names: Sequence[str]) -> Iterator[str]:
    """Yields the lines of the report as soon as they are computed."""
    columns = (label_splits(NUM_SPLITS), label_splits(0), "input_x_gradient", "occlusion", "random")
    yield "# Faithfulness of attributions"
    yield (
        f"\n`python benchmarks/faithfulness.py`, torch {torch.__version__}, CPU, one thread; training seed 0, bootstrap seed 0.\n"
    )
    yield (
        "AOPCR (area over the perturbation curve for regression, Ozyegen, Ilic and Cevik 2022; exact definition: "
        "`forecaster/explain/faithfulness.py`) in units of the scale of MASE, mean over "
        f"{NUM_HISTORIES} histories ({LEVEL:.0%} interval of a bootstrap over histories): the larger, the more faithful. Values "
        "are replaced by the mean of the history, and the changed history is forecast anew. The histories end before the last "
        "window of evenly spaced series, or before the last windows of a single series (us_births, bike_sharing). *Small*: a "
        f"network that was trained for {TRAINING['steps']} steps on the data before; *pretrained*: `base`, without covariates. "
        "*Gap*: what the attributions miss of forecast minus baseline, the largest of all histories, and in how many it is more "
        f"than {TOLERANCE:.0%}. Seconds are CPU seconds of one explanation with its AOPCR, mean (largest), of at most {STEPS} "
        "steps.\n"
    )
    yield (
        "| data | network | integrated gradients | straight path only | input x gradient | occlusion | random | gap | points "
        "| s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    differences = []
    for name in names:
        case = load_case(name, selection=False)
        for label, model in build_models(name, case).items():
            result = measure(
                [model] * len(case.histories), case.histories, horizon=SETS[name].horizon, splits=(0, NUM_SPLITS)
            )
            cells = [format_mean(result.aopcr[column]) for column in columns]
            gap = f"{result.completeness.max():.1%} ({(result.completeness > TOLERANCE).sum()})"
            seconds = f"{result.seconds.mean():.2f} ({result.seconds.max():.2f})"
            yield (f"| {name} | {label} | {' | '.join(cells)} | {gap} | {result.points.mean():.0f} | {seconds} |")
            ours = result.aopcr[columns[0]]
            compared = [format_mean(ours - result.aopcr[column]) for column in columns[1:]]
            differences.append(f"| {name} | {label} | {' | '.join(compared)} |")
    yield "\nIntegrated gradients minus the other ranking, on the same histories:\n"
    yield "| data | network | straight path only | input x gradient | occlusion | random |\n|---|---|---|---|---|---|"
    yield from differences


def format_mean(values: np.ndarray) -> str:
    """Formats a mean with its interval."""
    low, high = bootstrap_interval(values)
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
