"""Accuracy of the presets on the last window of ten data sets with published results.

    python benchmarks/accuracy.py                          all data sets, three seeds; cached results are not computed again
    python benchmarks/accuracy.py --sets m3_monthly,m4_hourly --seeds 0
    python benchmarks/accuracy.py --table                  writes the table from the cached results

Reads the data sets from `shared/data` beside (or in) the checkout, and exits with a message if they are missing. Caches the
results in `.forecaster/accuracy/`, one file per data set, seed and list of candidate specs, and writes
benchmarks/results/accuracy.md. Nothing is selected on a test window: the training data end before it, and the script stops if
other values in the test window would change the training data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
import quantiles

from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.evaluation.blend_weights import fit_blend
from forecaster.evaluation.calibration import add_quantiles, calibrate_model, choose_untrained_windows
from forecaster.evaluation.scores import SCORED_LEVELS
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage import atomic
from forecaster.training.base_variants import build_base_variants
from forecaster.training.fit import fit, refit
from forecaster.training.presets import build_candidate_specs, build_validation_fields
from forecaster.training.selection import select_on_validation

ROOT = Path(__file__).parent.parent
CACHE_FOLDER = ROOT / ".forecaster" / "accuracy"
RESULT = ROOT / "benchmarks" / "results" / "accuracy.md"
NETWORK, BLEND = "ours", "blend"
NAIVE2_HOURLY = {"smape": 18.383, "mase": 2.395}  # published by the organisers of M4; OWA is relative to these
STANDARDISATION_ROWS = slice(0, 8640)  # training rows of ETTh1, which define its standardisation


class BenchmarkSet(NamedTuple):
    """A data set, how it is evaluated, and the published results on it.

    Attributes:
        file: Name within the data folder.
        freq: Frequency of the timestamps.
        horizon: Steps ahead.
        season: Season of the MASE scale.
        windows: Number of rolling origins; the last leaves one horizon.
        stride: Steps between origins; the horizon if None.
        published: MASE by model (for ETTh1 the pair of MSE and MAE). The sources are in docs/experiments.md.
        targets: Target values of the same metrics; empty if there is no target.
    """

    file: str
    freq: str
    horizon: int
    season: int
    windows: int = 1
    stride: int | None = None
    published: Mapping[str, Any] = {}
    targets: tuple[float, ...] = ()


def short_set(file: str, freq: str, horizon: int, season: int, *published: float) -> BenchmarkSet:
    """Builds the entry of a panel of short series from the published MASE of the models below and, last, our target."""
    *scores, target = published
    names = ("seasonal naive", "AutoETS", "AutoTheta", "4-model ensemble", "DeepAR", "TiRex")
    return BenchmarkSet(file, freq, horizon, season, published=dict(zip(names, scores, strict=True)), targets=(target,))


SHORT_SETS = {
    "m3_monthly": short_set("m3_monthly.parquet", "MS", 18, 12, 1.146, 0.863, 0.855, 0.826, 1.167, 0.831, 0.82),
    "m3_quarterly": short_set("m3_quarterly.parquet", "QS", 8, 4, 1.425, 1.144, 1.119, 1.164, 1.310, 1.154, 1.11),
    "m3_yearly": short_set("m3_yearly.parquet", "YS", 6, 1, 3.172, 2.695, 2.610, 2.704, 3.508, 2.710, 2.60),
    "m1_monthly": short_set("m1_monthly.parquet", "MS", 18, 12, 1.314, 1.089, 1.092, 1.034, 1.192, 1.060, 1.03),
    "m1_quarterly": short_set("m1_quarterly.parquet", "QS", 8, 4, 2.078, 1.661, 1.667, 1.594, 1.833, 1.674, 1.60),
    "m1_yearly": short_set("m1_yearly.parquet", "YS", 6, 1, 4.894, 3.957, 3.659, 3.574, 4.603, 3.703, 3.5),
    "hospital": short_set("hospital.parquet", "MS", 12, 12, 0.921, 0.770, 0.764, 0.748, 0.769, 0.763, 0.745),
    "fred_md": short_set("fred_md.parquet", "MS", 12, 12, 1.101, 0.491, 0.564, 0.489, 0.640, 0.495, 0.48),
}
OTHER_SETS = {
    "m4_hourly": BenchmarkSet(
        "m4_hourly.parquet",
        "h",
        48,
        24,
        published={"seasonal naive": 1.193, "ES-RNN": 0.893, "best of M4": 0.801, "TiRex": 0.722, "DeepAR": 3.53},
        targets=(0.80, 0.41),  # the second is OWA
    ),
    "us_births": BenchmarkSet(
        "us_births.parquet",
        "D",
        30,
        1,
        windows=20,
        targets=(0.313,),
        published={"seasonal naive": 1.865, "DeepAR": 0.535, "xLSTM-Mixer": 0.313},
    ),
}
OTHER_SETS["car_parts"] = BenchmarkSet("car_parts_with_missing.parquet", "MS", 12, 12)
ETTH1_MEAN_TARGET = (0.397, 0.420)  # the result of xLSTM-Mixer
ETTH1_PUBLISHED = {
    96: {"SegRNN": (0.351, 0.392), "PatchTST": (0.375, 0.404), "DeepAR": (1.097, 0.803)},
    192: {},
    336: {},
    720: {},
}
for horizon, published in ETTH1_PUBLISHED.items():
    OTHER_SETS[f"ETTh1-{horizon}"] = BenchmarkSet(
        "ETTh1.csv.gz",
        "h",
        horizon,
        24,
        windows=2880 - horizon + 1,
        stride=1,
        published=published,
        targets=published.get("SegRNN", ()),
    )
SETS = SHORT_SETS | OTHER_SETS


class AccuracyResult(NamedTuple):
    """The result of one training on one data set.

    Attributes:
        scores: mase, smape, mae and mse by model.
        seconds: Training time, including the selection of the epoch, the refit and all members.
        fields: Fields of the specification.
        weights: Blend weights, in whole percents; empty without a blend.
    """

    scores: Mapping[str, Mapping[str, float]]
    seconds: float
    fields: Mapping[str, Any]
    weights: Mapping[str, float] = {}


def main() -> None:
    """Computes the missing results and writes the table."""
    options = _parse_options()
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("Expected the folder shared/data in or beside the checkout; found none. Put the data sets there.")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    for name in () if options.table else options.sets:
        for seed in options.seeds:
            cache_file = CACHE_FOLDER / f"{cache_prefix(name, folder, options.members)}{seed}.json"
            if cache_file.exists():
                continue
            result, backtest_quantiles = measure_set(name, folder, seed=seed, members=options.members)
            if backtest_quantiles is not None:
                quantiles.save(backtest_quantiles, f"{name}-ours-{seed}")
            atomic.write_text(cache_file, json.dumps(result._asdict(), indent=1))
            scores = ", ".join(f"{key} {value:.3f}" for key, value in result.scores[NETWORK].items())
            print(f"{name}, seed {seed}: {scores} ({result.seconds:.0f} s)", flush=True)
    write_table(folder, options.members)


def cache_prefix(name: str, folder: Path, members: int) -> str:
    """Returns the file name prefix of cached results; it depends on the presets, so that results of older presets are ignored."""
    train = training_panel(load_panel(SETS[name], folder), SETS[name])
    candidates = [
        spec.model_dump_json(exclude_none=True) for spec in candidate_specs(name, train, seed=0, members=members)
    ]
    return f"{name}-{members}-{hashlib.sha256(''.join(candidates).encode()).hexdigest()[:8]}-"


def measure_set(
    name: str, folder: Path, *, seed: int, members: int
) -> tuple[AccuracyResult, quantiles.Quantiles | None]:
    """Trains on the data before the test windows and evaluates on the test windows."""
    dataset = SETS[name]
    panel = load_panel(dataset, folder)
    train = training_panel(panel, dataset)
    assert train.digest == training_panel(with_changed_test(panel, dataset), dataset).digest, (
        "the training data include part of the test windows"
    )
    started = time.monotonic()
    spec = select_on_validation(train, candidate_specs(name, train, seed=seed, members=members), accelerator="cpu").spec
    fitted = fit(train, spec, accelerator="cpu")
    calibrated = calibrate_network(fitted.model, train)
    if spec.blend:
        blend = fit_blend(fitted.model, train, windows=spec.training.valid_windows, stride=spec.training.valid_stride)
        fitted = fitted._replace(model=blend.model)
    final_model = refit(train, fitted, accelerator="cpu") if spec.training.refit else fitted.model
    seconds = time.monotonic() - started
    network = replace(final_model, blend_weights={}, calibration=calibrated.calibration)
    predictors: dict[str, ForecastFunction | Predictor] = {
        NETWORK: Predictor(network),
        "seasonal naive": seasonal_naive(naive_season(name)),
    }
    if spec.blend:
        predictors[BLEND] = Predictor(final_model)
    result = backtest(
        panel,
        predictors,
        horizon=dataset.horizon,
        windows=dataset.windows,
        season=dataset.season,
        min_history=2,
        stride=dataset.stride,
    )
    has_quantiles = not name.startswith("ETT")  # nobody published quantile losses of its protocol
    if has_quantiles:
        result = add_quantiles(result, {NETWORK: network}, levels=SCORED_LEVELS)
    accuracy = AccuracyResult(
        {model: compute_scores(result, model) for model in predictors},
        seconds,
        spec.model_dump(mode="json", exclude_defaults=True),
        dict(final_model.blend_weights),
    )
    return accuracy, quantiles.from_backtest(result, NETWORK) if has_quantiles else None


def calibrate_network(model: FittedModel, train: Panel) -> FittedModel:
    """Returns the network with intervals from its validation windows, or from half of the histories if it was not trained."""
    windows, stride = model.spec.training.valid_windows, model.spec.training.valid_stride
    if not model.spec.training.steps:
        windows, stride = choose_untrained_windows(train, horizon=model.spec.horizon)
    return calibrate_model(model, train, windows=windows, stride=stride)


def candidate_specs(name: str, train: Panel, *, seed: int, members: int) -> list[Spec]:
    """Returns the variants of the preset and those of the pretrained network.

    ETTh1 uses the validation windows of its protocol, which are never trained on.
    """
    dataset = SETS[name]
    presets = build_candidate_specs(train, horizon=dataset.horizon, name=name)
    candidates = [spec.model_dump() for spec in [*build_base_variants(train, presets[0]), *presets]]
    for fields in candidates:
        fields["members"] = members if fields["training"]["steps"] else 1
        fields["training"] |= {"seed": seed}
        if name in SHORT_SETS:
            fields["blend"] = ["dynamic_optimized_theta"]
        if name == "us_births" and fields["training"]["initial"] == "random":
            fields["calendar"] = [*fields["calendar"], "holiday:US"]
        if name.startswith("ETT"):
            validation = build_validation_fields(
                2880 // dataset.horizon, horizon=dataset.horizon, season=dataset.season
            )
            fields["training"] |= {"valid_stride": None, **validation, "refit": False}
    return [Spec.parse(fields, where=name) for fields in candidates]


def load_panel(dataset: BenchmarkSet, folder: Path) -> Panel:
    """Returns the panel up to the end of the test windows."""
    if not dataset.file.startswith("ETT"):
        return to_panel(pd.read_parquet(folder / dataset.file), freq=dataset.freq)
    frame = pd.read_csv(folder / dataset.file, parse_dates=["date"]).iloc[:14400].set_index("date")
    train_rows = frame.iloc[STANDARDISATION_ROWS]
    standardised = (frame - train_rows.mean()) / train_rows.std(ddof=0)
    long_frame = standardised.rename_axis("ds").reset_index().melt("ds", var_name="unique_id", value_name="y")
    return to_panel(long_frame, freq=dataset.freq)


def count_test_steps(dataset: BenchmarkSet) -> int:
    """Returns the number of steps at the end of each series that belong to the test windows."""
    return dataset.horizon + (dataset.windows - 1) * (dataset.stride or dataset.horizon)


def training_panel(panel: Panel, dataset: BenchmarkSet) -> Panel:
    """Returns all data that training may use."""
    return hold_out(panel, count_test_steps(dataset), min_history=2).history


def with_changed_test(panel: Panel, dataset: BenchmarkSet) -> Panel:
    """Returns the panel with other values in the test windows."""
    steps = count_test_steps(dataset)
    return replace(
        panel,
        series=[replace(series, y=np.append(series.y[:-steps], -1 - series.y[-steps:])) for series in panel.series],
    )


def naive_season(name: str) -> int:
    """Returns the season that the published seasonal naive forecast repeats."""
    return 7 if name == "us_births" else SETS[name].season


def compute_scores(result: Backtest, model: str) -> dict[str, float]:
    """Returns the scores of the backtest, and MSE and MAE over all windows, steps and series."""
    error = result.actual - result.forecasts[model]
    return result.scores(model) | {"mse": float(np.nanmean(error**2)), "mae": float(np.nanmean(np.abs(error)))}


def write_table(folder: Path, members: int) -> None:
    """Writes the table of all cached results of the current presets beside the published figures."""
    results = {
        name: [
            AccuracyResult(**json.loads(path.read_text()))
            for path in sorted(CACHE_FOLDER.glob(f"{cache_prefix(name, folder, members)}*.json"))
        ]
        for name in SETS
    }
    results = {name: runs for name, runs in results.items() if runs}
    parts = [_HEAD, _format_short_table(results), _format_other_table(results), _format_specs(results)]
    RESULT.write_text("\n\n".join(part for part in parts if part) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}")


_HEAD = """# Accuracy

`python benchmarks/accuracy.py`. The last window of each set (us_births: the last 20; ETTh1: all of rows 11,520 to 14,399); the
presets that `forecaster train DATA --horizon H` uses, with the number of members given below (us_births also has US holidays as a
covariate; ETTh1 is validated on the rows of its protocol and not refitted on them); means over seeds, and their range. `blend` is
our network with dynamic Theta, weighted on the validation windows. Trained on a CPU; seconds are wall time, on a machine that was
busy at times (docs/experiments.md). Published figures and their sources: docs/experiments.md. The MASE scale is the error of the
seasonal naive forecast over the whole history before the test."""


def _format_short_table(results: Mapping[str, Sequence[AccuracyResult]]) -> str:
    short_results = {name: results[name] for name in SHORT_SETS if name in results}
    if not short_results:
        return ""
    columns = ["seasonal naive", "AutoETS", "AutoTheta", "4-model ensemble", "DeepAR", "TiRex"]
    header = "| set | **ours** | range | blend | target | ours vs target | seasonal naive, computed here | "
    header += f"{' | '.join(columns)} | seeds | s |"
    lines = [header, "|---" * (header.count("|") - 1) + "|"]
    for name, runs in short_results.items():
        scores = [run.scores[NETWORK]["mase"] for run in runs]
        cells = [f"{SETS[name].published[model]:.3f}" for model in columns]
        blend = f"{_mean_mase(runs, BLEND):.3f} ({100 * np.mean([run.weights.get('network', 1) for run in runs]):.0f} % ours)"
        target_cells = _target_cells([float(np.mean(scores))], SETS[name].targets)
        ours_cells = f"**{np.mean(scores):.3f}** | {min(scores):.3f}-{max(scores):.3f} | {blend} | {target_cells}"
        naive_here = runs[0].scores["seasonal naive"]["mase"]
        lines.append(
            f"| {name} | {ours_cells} | {naive_here:.3f} | {' | '.join(cells)} | {len(runs)} | {_format_seconds(runs)} |"
        )
    mean_ours, mean_blend = (
        _geometric_mean([_mean_mase(runs, model) for runs in short_results.values()], short_results)
        for model in (NETWORK, BLEND)
    )
    others = [
        f"{_geometric_mean([SETS[name].published[model] for name in short_results], short_results):.3f}"
        for model in columns
    ]
    scope = "all eight" if len(short_results) == len(SHORT_SETS) else f"these {len(short_results)}"
    lines.append(
        f"| geometric mean over seasonal naive, {scope} | **{mean_ours:.3f}** | | {mean_blend:.3f} | "
        f"{_target_cells([mean_ours], (0.73,))} | 1.000 | "
        f"{' | '.join(others)} | | |"
    )
    return "## Short panels: MASE\n\n" + "\n".join(lines)


def _target_cells(ours: Sequence[float], targets: Sequence[float]) -> str:
    """Returns two cells: the targets, and the relative difference of our errors to them."""
    error_pairs = list(zip(ours, targets, strict=bool(targets)))
    targets_cell = "/".join(f"{target:.3f}" for _, target in error_pairs)
    return f"{targets_cell} | {', '.join(f'{100 * (error / target - 1):+.1f} %' for error, target in error_pairs)}"


def _mean_mase(runs: Sequence[AccuracyResult], model: str) -> float:
    """Returns the mean MASE over seeds; that of the network if there was no blend."""
    return float(np.mean([run.scores.get(model, run.scores[NETWORK])["mase"] for run in runs]))


def _geometric_mean(mase: Sequence[float], names: Mapping[str, Any]) -> float:
    naives = [SETS[name].published["seasonal naive"] for name in names]
    return float(np.exp(np.mean(np.log(np.array(mase) / np.array(naives)))))


def _format_other_table(results: Mapping[str, Sequence[AccuracyResult]]) -> str:
    lines = []
    for name, runs in results.items():
        if name in SHORT_SETS:
            continue
        mean = {key: np.mean([run.scores[NETWORK][key] for run in runs]) for key in runs[0].scores[NETWORK]}
        naive_here = runs[0].scores["seasonal naive"]
        published = "; ".join(
            f"{model} {'/'.join(f'{value:.3f}' for value in np.atleast_1d(value))}"
            for model, value in SETS[name].published.items()
        )
        if name.startswith("ETT"):
            ours_cell = f"MSE **{mean['mse']:.3f}**, MAE **{mean['mae']:.3f}**"
            naive_cell = f"{naive_here['mse']:.3f}/{naive_here['mae']:.3f}"
            errors = [float(mean["mse"]), float(mean["mae"])]
        else:
            ours_cell = f"MASE **{mean['mase']:.3f}**, sMAPE {mean['smape']:.3f}"
            naive_cell = f"{naive_here['mase']:.3f}"
            errors = [float(mean["mase"])]
        if name == "m4_hourly":
            owa = (mean["smape"] / NAIVE2_HOURLY["smape"] + mean["mase"] / NAIVE2_HOURLY["mase"]) / 2
            ours_cell += f", OWA **{owa:.3f}**"
            errors.append(float(owa))
        target_cells = _target_cells(errors, SETS[name].targets)
        lines.append(
            f"| {name} | {ours_cell} | {target_cells} | {naive_cell} | {published} | {len(runs)} | {_format_seconds(runs)} |"
        )
    if not lines:
        return ""
    etth1_scores = [[run.scores[NETWORK] for run in results[name]] for name in results if name.startswith("ETT")]
    if len(etth1_scores) == len(ETTH1_PUBLISHED):
        mse, mae = (
            np.mean([np.mean([scores[key] for scores in runs]) for runs in etth1_scores]) for key in ("mse", "mae")
        )
        published = "SegRNN 0.408/0.428; xLSTM-Mixer 0.397/0.420"
        ours_cell = (
            f"MSE **{mse:.3f}**, MAE **{mae:.3f}** | {_target_cells([float(mse), float(mae)], ETTH1_MEAN_TARGET)}"
        )
        lines.append(f"| ETTh1, mean of the four | {ours_cell} | | {published} | | |")
    header = [
        "| set | ours | target | ours vs target | seasonal naive, computed here | published | seeds | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "## Long series and long horizons\n\n" + "\n".join(header + lines)


def _format_seconds(runs: Sequence[AccuracyResult]) -> str:
    return f"{np.mean([run.seconds for run in runs]):.0f}"


def _format_specs(results: Mapping[str, Sequence[AccuracyResult]]) -> str:
    lines = [f"- {name}: `{json.dumps(runs[0].fields)}`" for name, runs in results.items()]
    return "## Specifications\n\n" + "\n".join(lines)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="write the table from the cached results and exit")
    options = parser.parse_args()
    unknown = set(options.sets) - set(SETS)
    if unknown:
        parser.error(f"Expected --sets from {', '.join(SETS)}; found {', '.join(sorted(unknown))}.")
    return options


if __name__ == "__main__":
    main()
