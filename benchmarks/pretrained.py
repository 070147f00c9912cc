"""Accuracy of the pretrained network `base` without any training, beside trained networks and published figures.

    python benchmarks/pretrained.py                      the last windows; writes benchmarks/results/pretrained.md
    python benchmarks/pretrained.py --selection          the windows before the last; no file is written
    python benchmarks/pretrained.py --bundles A,B        further bundles of `forecaster pretrain`, such as those of other seeds

Reads the data sets from `shared/data` beside (or in) the checkout, and exits with a message if they are missing. The network has
seen synthetic series only. Its generator and sizes were chosen on the windows before the last of the ten sets; nothing was chosen
on the guards.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent))
from accuracy import NAIVE2_HOURLY, SETS, SHORT_SETS, BenchmarkSet, compute_scores, load_panel, training_panel

from forecaster.bundle.artifact import load_predictor
from forecaster.bundle.pretrained.base import BASE_FOLDER, specialize_base
from forecaster.data.calendar import default_season
from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import ForecastFunction, seasonal_naive
from forecaster.prediction.fitted_model import StoredModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Panel

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "pretrained.md"
OURS, SEASONAL, LAST = "pretrained", "seasonal naive", "last value"
LEVELS = tuple(round(0.1 * decile, 1) for decile in range(1, 10))
TRAINED = {  # benchmarks/results/accuracy.md, five members, before there was a pretrained network
    "geometric mean": 0.735,
    "m4_hourly": 0.794,
    "us_births": 0.305,
}


class Guard(NamedTuple):
    """A set on which nothing is chosen, and the MASE of AutoETS on the same window (statsforecast, docs/experiments.md)."""

    dataset: BenchmarkSet
    season: int
    auto_ets: float
    frequency: str | None = None


GUARDS = {
    "aus_retail": Guard(BenchmarkSet("aus_retail.parquet", "MS", 18, 12), 12, 1.145),
    "m3_other": Guard(BenchmarkSet("m3_other.parquet", "D", 8, 1), 1, 1.801),
    "classics monthly": Guard(BenchmarkSet("classics.parquet", "MS", 24, 12), 12, 1.335, "MS"),
    "classics quarterly": Guard(BenchmarkSet("classics.parquet", "QS", 8, 4), 4, 1.326, "QS"),
    "classics yearly": Guard(BenchmarkSet("classics.parquet", "YS", 6, 1), 1, 1.704, "YS"),
}


class PretrainedResult(NamedTuple):
    """The scores of the forecasters on one set, and the CPU seconds of the pretrained network's forecasts."""

    scores: Mapping[str, Mapping[str, float]]
    seconds: float


def measure(panel: Panel, dataset: BenchmarkSet, model: StoredModel, *, season: int) -> PretrainedResult:
    """Forecasts the test windows of a panel with the pretrained network, the seasonal naive and the last value."""
    specialized = specialize_base(panel.freq, horizon=dataset.horizon, season=season, stored=model)
    forecasters: dict[str, ForecastFunction | Predictor] = {
        OURS: Predictor(specialized),
        SEASONAL: seasonal_naive(season),
        LAST: seasonal_naive(1),
    }
    options: dict[str, Any] = {
        "horizon": dataset.horizon,
        "windows": dataset.windows,
        "season": dataset.season,
        "min_history": 2,
        "stride": dataset.stride,
    }
    started = time.process_time()
    backtest(panel, {OURS: forecasters[OURS]}, **options)
    seconds = time.process_time() - started
    result = backtest(panel, forecasters, **options)
    return PretrainedResult({name: compute_scores(result, name) for name in forecasters}, seconds)


def load_guard(guard: Guard, folder: Path) -> Panel:
    """Loads the series of a guard, which are those of one frequency."""
    frame = pd.read_parquet(folder / guard.dataset.file)
    if guard.frequency is not None:
        info = pd.read_csv(folder / "classics_info.csv")
        frame = frame[frame["unique_id"].isin(info[info["freq"] == guard.frequency]["unique_id"])]
    return to_panel(frame[["unique_id", "ds", "y"]], freq=guard.dataset.freq)


def measure_all(
    folder: Path, model: StoredModel, *, names: Sequence[str], selection: bool
) -> dict[str, PretrainedResult]:
    """Measures all sets and guards; with `selection`, the ten sets on the windows before the last, and no guard."""
    results = {}
    for name in names:
        guard = GUARDS.get(name)
        dataset = SETS[name] if guard is None else guard.dataset
        panel = load_panel(dataset, folder) if guard is None else load_guard(guard, folder)
        if selection:
            if guard is not None:
                continue
            panel = (
                training_panel(panel, dataset)
                if dataset.windows > 1
                else hold_out(panel, dataset.horizon, min_history=dataset.horizon + 2).history
            )
        season = guard.season if guard is not None else default_season(panel.freq)
        results[name] = measure(panel, dataset, model, season=season)
        scores = results[name].scores
        print(
            f"{name}: "
            + ", ".join(f"{key} {value['mase']:.3f}" for key, value in scores.items())
            + f" ({results[name].seconds:.1f} CPU s)",
            flush=True,
        )
    return results


def report_lines(runs: Sequence[Mapping[str, PretrainedResult]]) -> Iterator[str]:
    """Yields the lines of the report on one or more bundles; the first is the shipped one."""
    [shipped, *_] = runs

    def ours(name: str, key: str = "mase") -> str:
        values = [run[name].scores[OURS][key] for run in runs]
        others = f" (mean {np.mean(values):.3f}, {min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        return f"**{values[0]:.3f}**{others}"

    yield "# The pretrained network, without any training"
    yield ""
    yield "`python benchmarks/pretrained.py`. The protocols of benchmarks/results/accuracy.md; MASE unless stated."
    if len(runs) > 1:
        yield f"In brackets: mean and range over {len(runs)} pretrainings with different seeds; the first is the shipped one."
    yield "\n## Short panels\n\n| set | zero-shot | seasonal naive | last value | AutoETS | 4-model ensemble | TiRex | CPU s |"
    yield "|---|---|---|---|---|---|---|---|"
    short = [name for name in SHORT_SETS if name in shipped]
    for name in short:
        scores, published = shipped[name].scores, SETS[name].published
        yield (
            f"| {name} | {ours(name)} | {_naive_cells(scores)} | {published['AutoETS']:.3f} | "
            f"{published['4-model ensemble']:.3f} | {published['TiRex']:.3f} | {shipped[name].seconds:.1f} |"
        )
    if len(short) == len(SHORT_SETS):
        means = [geometric_mean([run[name].scores[OURS]["mase"] for name in short], short) for run in runs]
        others = f" (mean {np.mean(means):.3f}, {min(means):.3f} to {max(means):.3f})" if len(means) > 1 else ""
        cells = [
            f"{geometric_mean([SETS[name].published[peer] for name in short], short):.3f}"
            for peer in ("AutoETS", "4-model ensemble", "TiRex")
        ]
        last = geometric_mean([shipped[name].scores[LAST]["mase"] for name in short], short)
        yield (
            f"| geometric mean over seasonal naive | **{means[0]:.3f}**{others} | 1.000 | {last:.3f} | {' | '.join(cells)} | |"
        )
        yield f"\nOur networks trained on each panel (five members): {TRAINED['geometric mean']:.3f}."
    guards = [name for name in GUARDS if name in shipped]
    if guards:
        yield "\n## Guards: nothing is ever chosen on these\n\n| set | zero-shot | seasonal naive | last value | AutoETS |"
        yield "|---|---|---|---|---|"
        for name in guards:
            scores = shipped[name].scores
            yield (f"| {name} | {ours(name)} | {_naive_cells(scores)} | {GUARDS[name].auto_ets:.3f} |")
    yield from _long_lines(shipped, ours)


def _long_lines(shipped: Mapping[str, PretrainedResult], ours: object) -> Iterator[str]:
    assert callable(ours)
    yield "\n## Long series\n\n| set | zero-shot | seasonal naive | last value | published or measured |\n|---|---|---|---|---|"
    if "m4_hourly" in shipped:
        scores = shipped["m4_hourly"].scores
        owa = np.mean([scores[OURS][key] / NAIVE2_HOURLY[key] for key in ("smape", "mase")])
        yield (
            f"| m4_hourly | {ours('m4_hourly')}, OWA {owa:.3f} | {_naive_cells(scores)} | "
            f"TiRex 0.722; ours trained {TRAINED['m4_hourly']} |"
        )
    if "us_births" in shipped:
        scores = shipped["us_births"].scores
        yield (
            f"| us_births, 20 windows | {ours('us_births')} | {_naive_cells(scores)} | "
            f"TiRex-2 pretrained 0.308, DeepAR 0.535; ours trained {TRAINED['us_births']} |"
        )
    names = [name for name in shipped if name.startswith("ETTh1")]
    if names:
        cells = [
            f"{np.mean([shipped[name].scores[model]['mse'] for name in names]):.3f}/"
            f"{np.mean([shipped[name].scores[model]['mae'] for name in names]):.3f}"
            for model in (OURS, SEASONAL, LAST)
        ]
        yield f"| ETTh1, MSE/MAE, mean of {len(names)} horizons | {' | '.join(cells)} | xLSTM-Mixer 0.397/0.420 |"


def _naive_cells(scores: Mapping[str, Mapping[str, float]]) -> str:
    return f"{scores[SEASONAL]['mase']:.3f} | {scores[LAST]['mase']:.3f}"


def geometric_mean(mase: Sequence[float], names: Sequence[str]) -> float:
    """Returns the geometric mean of MASE over that of the published seasonal naive."""
    return float(
        np.exp(
            np.mean([np.log(value / SETS[name].published[SEASONAL]) for value, name in zip(mase, names, strict=True)])
        )
    )


def main() -> None:
    """Measures, prints the report and writes it to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--selection", action="store_true", help="score the windows before the last")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=[*SETS, *GUARDS])
    parser.add_argument("--bundles", type=lambda text: [Path(part) for part in text.split(",")], default=[])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("Expected the folder shared/data in or beside the checkout; found none. Put the data sets there.")
    runs = []
    for bundle in [BASE_FOLDER, *options.bundles]:
        model = load_predictor(bundle).fitted_model
        assert isinstance(model, StoredModel)
        runs.append(measure_all(folder, model, names=options.sets, selection=options.selection))
    lines = list(report_lines(runs))
    print("\n".join(lines))
    if not options.selection and set(options.sets) == {*SETS, *GUARDS}:
        RESULT.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
