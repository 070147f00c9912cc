"""How accurate is it? The last window of ten sets that others were measured on, with the presets as they are.

    python benchmarks/accuracy.py                          all sets, three seeds; what is there already is not run again
    python benchmarks/accuracy.py --sets m3_monthly,m4_hourly --seeds 0
    python benchmarks/accuracy.py --table                  writes the table from what is there

Reads the sets from `shared/data` beside (or in) the checkout, and says so where they are not there. Keeps what it measured in
`.forecaster/accuracy/`, a file for each set, seed and what a preset tries there, and writes benchmarks/results/accuracy.md.
Nothing is chosen on a test window: what a forecaster is made from is cut before it, and the script refuses to go on where
other values there would change it.
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

from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.evaluation.blend_weights import fit_blend
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage import atomic
from forecaster.training.fit import fit, refit
from forecaster.training.presets import build_candidate_specs, build_validation_fields
from forecaster.training.selection import select_on_validation

ROOT = Path(__file__).parent.parent
CACHE_FOLDER = ROOT / ".forecaster" / "accuracy"
RESULT = ROOT / "benchmarks" / "results" / "accuracy.md"
NETWORK, BLEND = "ours", "blend"
NAIVE2_HOURLY = {"smape": 18.383, "mase": 2.395}  # of M4's organisers: what OWA is relative to
STANDARDISATION_ROWS = slice(0, 8640)  # rows of ETTh1 that are trained on


class BenchmarkSet(NamedTuple):
    """A data set, how it is asked, and what others reached there.

    Attributes:
        file: In the folder of the data.
        freq: Of its stamps.
        horizon: Steps ahead.
        season: Of the scale of MASE.
        windows: Rolling origins, the last with a horizon left.
        stride: Steps between them; a horizon, if not given.
        published: By who reached it: MASE (or, of ETTh1, MSE and MAE). Sources in docs/experiments.md.
        aim: Of the same; none where nothing was aimed at.
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
    """One of the eight panels of short series, with the published MASE of those below, and what we aim at last."""
    *others, aim = published
    names = ("seasonal naive", "AutoETS", "AutoTheta", "4-model ensemble", "DeepAR", "TiRex")
    return BenchmarkSet(file, freq, horizon, season, published=dict(zip(names, others, strict=True)), targets=(aim,))


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
        targets=(0.80, 0.41),  # OWA second
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
ETTH1_MEAN_TARGET = (0.397, 0.420)  # aimed at: that of xLSTM-Mixer
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
    """What one training of one set came to.

    Attributes:
        scores: By forecaster: mase, smape, mae, mse.
        seconds: Of training, with the choice of the epoch, the refit and all members.
        fields: Of the specification.
        weights: Of the blend, in whole percents; none where there is no blend.
    """

    scores: Mapping[str, Mapping[str, float]]
    seconds: float
    fields: Mapping[str, Any]
    weights: Mapping[str, float] = {}


def main() -> None:
    """Measures what is missing, and writes the table."""
    options = _parse_options()
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("The sets are not there: expected the folder shared/data in or beside the checkout.")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    for name in () if options.table else options.sets:
        for seed in options.seeds:
            kept = CACHE_FOLDER / f"{cache_prefix(name, folder, options.members)}{seed}.json"
            if kept.exists():
                continue
            found = measure_set(name, folder, seed=seed, members=options.members)
            atomic.write_text(kept, json.dumps(found._asdict(), indent=1))
            told = ", ".join(f"{key} {value:.3f}" for key, value in found.scores[NETWORK].items())
            print(f"{name}, seed {seed}: {told} ({found.seconds:.0f} s)", flush=True)
    write_table(folder, options.members)


def cache_prefix(name: str, folder: Path, members: int) -> str:
    """What the files of a set begin with: other presets have other files, so that no figure is of a preset that is gone."""
    known = training_panel(load_panel(SETS[name], folder), SETS[name])
    tried = [spec.model_dump_json(exclude_none=True) for spec in candidate_specs(name, known, seed=0, members=members)]
    return f"{name}-{members}-{hashlib.sha256(''.join(tried).encode()).hexdigest()[:8]}-"


def measure_set(name: str, folder: Path, *, seed: int, members: int) -> AccuracyResult:
    """Trains on what was before the test windows, and asks there."""
    one = SETS[name]
    panel = load_panel(one, folder)
    known = training_panel(panel, one)
    assert known.digest() == training_panel(with_changed_test(panel, one), one).digest(), (
        "the test window reaches into training"
    )
    started = time.monotonic()
    spec = select_on_validation(known, candidate_specs(name, known, seed=seed, members=members), accelerator="cpu").spec
    fitted = fit(known, spec, accelerator="cpu")
    if spec.blend:
        mixed = fit_blend(fitted.model, known, windows=spec.training.valid_windows, stride=spec.training.valid_stride)
        fitted = fitted._replace(forecaster=mixed.model)
    forecaster = refit(known, fitted, accelerator="cpu") if spec.training.refit else fitted.model
    seconds = time.monotonic() - started
    asked: dict[str, ForecastFunction | Predictor] = {
        NETWORK: Predictor(replace(forecaster, blend_weights={})),
        "seasonal naive": seasonal_naive(naive_season(name)),
    }
    if spec.blend:
        asked[BLEND] = Predictor(forecaster)
    result = backtest(
        panel, asked, horizon=one.horizon, windows=one.windows, season=one.season, min_history=2, stride=one.stride
    )
    return AccuracyResult(
        {who: compute_scores(result, who) for who in asked},
        seconds,
        spec.model_dump(mode="json", exclude_defaults=True),
        dict(forecaster.blend_weights),
    )


def candidate_specs(name: str, train: Panel, *, seed: int, members: int) -> list[Spec]:
    """The variants of the preset; of ETTh1 the validation windows are the protocol's, and stay unlearned."""
    one = SETS[name]
    made = [spec.model_dump() for spec in build_candidate_specs(train, horizon=one.horizon, name=name)]
    for fields in made:
        fields["members"] = members
        fields["training"] |= {"seed": seed}
        if name in SHORT_SETS:
            fields["blend"] = ["dynamic_optimized_theta"]
        if name == "us_births":
            fields["calendar"] = [*fields["calendar"], "holiday:US"]
        if name.startswith("ETT"):
            judges = build_validation_fields(2880 // one.horizon, horizon=one.horizon, season=one.season)
            fields["training"] |= {"valid_stride": None, **judges, "refit": False}
    return [Spec.parse(fields, where=name) for fields in made]


def load_panel(dataset: BenchmarkSet, folder: Path) -> Panel:
    """The panel, up to the end of the test."""
    if not dataset.file.startswith("ETT"):
        return to_panel(pd.read_parquet(folder / dataset.file), freq=dataset.freq)
    wide = pd.read_csv(folder / dataset.file, parse_dates=["date"]).iloc[:14400].set_index("date")
    trained = wide.iloc[STANDARDISATION_ROWS]
    scaled = (wide - trained.mean()) / trained.std(ddof=0)
    long = scaled.rename_axis("ds").reset_index().melt("ds", var_name="unique_id", value_name="y")
    return to_panel(long, freq=dataset.freq)


def count_test_steps(dataset: BenchmarkSet) -> int:
    """Steps at the end that are the test."""
    return dataset.horizon + (dataset.windows - 1) * (dataset.stride or dataset.horizon)


def training_panel(panel: Panel, dataset: BenchmarkSet) -> Panel:
    """All that a forecaster is made from."""
    return hold_out(panel, test_steps(dataset), min_history=2).history


def with_changed_test(panel: Panel, dataset: BenchmarkSet) -> Panel:
    """The panel with other values in its test."""
    steps = test_steps(dataset)
    return panel._replace(
        series=[replace(each, y=np.append(each.y[:-steps], -1 - each.y[-steps:])) for each in panel.series]
    )


def naive_season(name: str) -> int:
    """The season that the published seasonal naive repeats."""
    return 7 if name == "us_births" else SETS[name].season


def compute_scores(result: Backtest, model: str) -> dict[str, float]:
    """MASE and the like; plain errors are those of all windows, steps and series alike."""
    error = result.actual - result.forecasts[model]
    return result.scores(model) | {"mse": float(np.nanmean(error**2)), "mae": float(np.nanmean(np.abs(error)))}


def write_table(folder: Path, members: int) -> None:
    """Everything that was measured of the presets as they are, beside what is published."""
    there = {
        name: [
            AccuracyResult(**json.loads(path.read_text()))
            for path in sorted(CACHE_FOLDER.glob(f"{cache_prefix(name, folder, members)}*.json"))
        ]
        for name in SETS
    }
    there = {name: found for name, found in there.items() if found}
    parts = [_HEAD, _format_short_table(there), _format_other_table(there), _format_specs(there)]
    RESULT.write_text("\n\n".join(part for part in parts if part) + "\n")
    print(f"wrote {RESULT.relative_to(ROOT)}")


_HEAD = """# Accuracy

`python benchmarks/accuracy.py`. The last window of each set (us_births: the last 20; ETTh1: all of rows 11,520 to 14,399); the
presets as `forecaster train DATA_SET --horizon H` takes them, with the members said below (us_births knows the holidays of the US
besides; ETTh1 is validated on the protocol's rows and not trained on them after); means over seeds, and their range. `blend` is
ours with dynamic Theta, weights from the validation windows. Trained on a CPU; seconds are wall time, of a machine that was
busy at times (docs/experiments.md). Published figures and their sources: docs/experiments.md. The scale of MASE is the seasonal
naive's error over all that was known before the test."""


def _format_short_table(results: Mapping[str, Sequence[AccuracyResult]]) -> str:
    found = {name: results[name] for name in SHORT_SETS if name in results}
    if not found:
        return ""
    columns = ["seasonal naive", "AutoETS", "AutoTheta", "4-model ensemble", "DeepAR", "TiRex"]
    head = f"| set | **ours** | range | blend | aim | ours to aim | seasonal naive, here | {' | '.join(columns)} | seeds | s |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for name, runs in found.items():
        each = [run.scores[NETWORK]["mase"] for run in runs]
        cells = [f"{SETS[name].published[who]:.3f}" for who in columns]
        blend = f"{_mean_mase(runs, BLEND):.3f} ({100 * np.mean([run.weights.get('network', 1) for run in runs]):.0f} % ours)"
        aimed = _target_cells([float(np.mean(each))], SETS[name].targets)
        mine = f"**{np.mean(each):.3f}** | {min(each):.3f}-{max(each):.3f} | {blend} | {aimed}"
        here = runs[0].scores["seasonal naive"]["mase"]
        lines.append(f"| {name} | {mine} | {here:.3f} | {' | '.join(cells)} | {len(runs)} | {_format_seconds(runs)} |")
    ours, blend = (
        _geometric_mean([_mean_mase(runs, who) for runs in found.values()], found) for who in (NETWORK, BLEND)
    )
    others = [f"{_geometric_mean([SETS[name].published[who] for name in found], found):.3f}" for who in columns]
    whole = "all eight" if len(found) == len(SHORT_SETS) else f"these {len(found)}"
    lines.append(
        f"| geometric mean over seasonal naive, {whole} | **{ours:.3f}** | | {blend:.3f} | {_target_cells([ours], (0.73,))} | 1.000 | "
        f"{' | '.join(others)} | | |"
    )
    return "## Short panels: MASE\n\n" + "\n".join(lines)


def _target_cells(ours: Sequence[float], targets: Sequence[float]) -> str:
    """Two cells: what was aimed at, and how far ours is above it, of an error or of several."""
    pairs = list(zip(ours, targets, strict=bool(targets)))
    aims = "/".join(f"{other:.3f}" for _, other in pairs)
    return f"{aims} | {', '.join(f'{100 * (one / other - 1):+.1f} %' for one, other in pairs)}"


def _mean_mase(runs: Sequence[AccuracyResult], model: str) -> float:
    """The mean MASE over seeds; the network's own where there was no blend."""
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
            f"{who} {'/'.join(f'{value:.3f}' for value in np.atleast_1d(value))}"
            for who, value in SETS[name].published.items()
        )
        if name.startswith("ETT"):
            told = f"MSE **{mean['mse']:.3f}**, MAE **{mean['mae']:.3f}**"
            here = f"{naive_here['mse']:.3f}/{naive_here['mae']:.3f}"
            reached = [float(mean["mse"]), float(mean["mae"])]
        else:
            told, here = f"MASE **{mean['mase']:.3f}**, sMAPE {mean['smape']:.3f}", f"{naive_here['mase']:.3f}"
            reached = [float(mean["mase"])]
        if name == "m4_hourly":
            owa = (mean["smape"] / NAIVE2_HOURLY["smape"] + mean["mase"] / NAIVE2_HOURLY["mase"]) / 2
            told += f", OWA **{owa:.3f}**"
            reached.append(float(owa))
        aimed = _target_cells(reached, SETS[name].targets)
        lines.append(f"| {name} | {told} | {aimed} | {here} | {published} | {len(runs)} | {_format_seconds(runs)} |")
    if not lines:
        return ""
    long = [[run.scores[NETWORK] for run in results[name]] for name in results if name.startswith("ETT")]
    if len(long) == len(ETTH1_PUBLISHED):
        mse, mae = (np.mean([np.mean([one[key] for one in runs]) for runs in long]) for key in ("mse", "mae"))
        others = "SegRNN 0.408/0.428; xLSTM-Mixer 0.397/0.420"
        told = f"MSE **{mse:.3f}**, MAE **{mae:.3f}** | {_target_cells([float(mse), float(mae)], ETTH1_MEAN_TARGET)}"
        lines.append(f"| ETTh1, mean of the four | {told} | | {others} | | |")
    head = [
        "| set | ours | aim | ours to aim | seasonal naive, here | published | seeds | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "## Long series and long horizons\n\n" + "\n".join(head + lines)


def _format_seconds(runs: Sequence[AccuracyResult]) -> str:
    return f"{np.mean([run.seconds for run in runs]):.0f}"


def _format_specs(results: Mapping[str, Sequence[AccuracyResult]]) -> str:
    lines = [f"- {name}: `{json.dumps(runs[0].fields)}`" for name, runs in results.items()]
    return "## What was trained\n\n" + "\n".join(lines)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    unknown = set(options.sets) - set(SETS)
    if unknown:
        parser.error(f"expected sets among {', '.join(SETS)}; found {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    main()
