"""Quantile losses and coverage of the presets on the sets of benchmarks/accuracy.py, beside published and measured ones.

    python benchmarks/accuracy.py                  trains, and caches the quantiles of every set and seed
    python benchmarks/quantiles.py --baselines     measures seasonal naive, AutoETS and dynamic Theta on the short sets; minutes
    python benchmarks/quantiles.py                 writes benchmarks/results/quantiles.md from what is cached

The weighted quantile loss is that of GIFT-Eval: for each of nine deciles twice the pinball loss of all series, windows and steps
over the sum of the absolute actuals; then the mean over deciles. Nothing is chosen on these windows.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))

from forecaster.data.calendar import default_season
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import seasonal_naive as build_seasonal_naive
from forecaster.evaluation.baselines import statistical_baseline
from forecaster.evaluation.interval_reliability import coverage_by_decile
from forecaster.evaluation.scores import SCORED_LEVELS
from forecaster.intervals.conformal import calibrate
from forecaster.metrics import DECILES, msis, nanmean, weighted_quantile_loss
from forecaster.series import Panel
from forecaster.series.history_summary import history_scale

ROOT = Path(__file__).parent.parent
CACHE_FOLDER = ROOT / ".forecaster" / "accuracy" / "quantiles"
RESULT = ROOT / "benchmarks" / "results" / "quantiles.md"
OURS = "ours"
SEASONAL, ETS, THETA = "seasonal naive", "AutoETS", "AutoTheta"
STATISTICAL = {ETS: "auto_ets", THETA: "dynamic_optimized_theta"}
CONFORMAL, OWN = "conformal", "own"
MIN_CALIBRATION_STEPS = 8  # of a history before the first origin of a baseline's calibration

# Mean weighted sum quantile loss: gift-eval's result files, as collected in docs/experiments.md.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "hospital": {SEASONAL: 0.0625, ETS: 0.0532, "DeepAR": 0.0620, "TiRex": 0.0507, "Chronos-2": 0.0510},
    "us_births": {SEASONAL: 0.1195, ETS: 0.0744, "DeepAR": 0.0275, "TiRex": 0.0230, "Chronos-2": 0.0165},
    "m4_hourly": {SEASONAL: 0.0376, ETS: 0.0696, "DeepAR": 0.1330, "TiRex": 0.0202, "Chronos-2": 0.0232},
    "car_parts": {SEASONAL: 1.7217, ETS: 1.340, "DeepAR": 0.9530, "TiRex": 0.9952, "Chronos-2": 0.9660},
}
TARGETS: Mapping[str, tuple[float, float]] = {
    "hospital": (0.0507, 0.0500),
    "us_births": (0.0200, 0.0160),
    "m4_hourly": (0.0270, 0.0202),
    "car_parts": (0.995, 0.950),
}
PUBLISHED_NAMES = (SEASONAL, ETS, "DeepAR", "TiRex", "Chronos-2")


class Quantiles(NamedTuple):
    """Quantiles of one forecaster on the test windows of a set.

    Attributes:
        actual: The actuals, by series, window and step.
        values: Quantiles at SCORED_LEVELS.
        scale: The scale of MASE of each series.
        is_non_negative: Whether no value of the set before the test windows is negative.
    """

    actual: np.ndarray
    values: np.ndarray
    scale: np.ndarray
    is_non_negative: bool

    def at(self, level: float) -> np.ndarray:
        """Returns the quantiles of one of SCORED_LEVELS."""
        return np.asarray(self.values[..., SCORED_LEVELS.index(level)])

    @property
    def wql(self) -> float:
        """The mean weighted quantile loss of the nine deciles."""
        deciles = np.stack([self.at(level) for level in DECILES], axis=-1)
        return float(np.mean(weighted_quantile_loss(self.actual, deciles, np.array(DECILES))))

    @property
    def msis(self) -> float:
        """The mean scaled interval score at 95 %."""
        scores = msis(self.actual, self.at(0.025), self.at(0.975), level=0.95, scale=self.scale[:, None])
        return float(nanmean(np.where(np.isfinite(scores), scores, np.nan)))

    def coverage(self, low: float, high: float) -> float:
        """Returns the share of actuals between two levels."""
        is_inside = (self.at(low) <= self.actual) & (self.actual <= self.at(high))
        return float(is_inside[np.isfinite(self.actual)].mean())

    @property
    def width(self) -> float:
        """The mean width of the 80 % intervals, in scales of MASE."""
        widths = nanmean(self.at(0.9) - self.at(0.1), axis=(1, 2)) / self.scale
        return float(nanmean(np.where(np.isfinite(widths), widths, np.nan)))

    @property
    def negative(self) -> int:
        """The number of negative quantiles on a set without negative values."""
        return int((self.values < 0).sum()) if self.is_non_negative else 0


def from_backtest(result: Backtest, name: str) -> Quantiles:
    """Returns the quantiles of a backtest that has those of SCORED_LEVELS."""
    columns = [list(result.levels).index(level) for level in SCORED_LEVELS]
    tests = result.actual.shape[2] + (result.actual.shape[1] - 1) * result.stride
    is_non_negative = all(bool((item.y[:-tests][~np.isnan(item.y[:-tests])] >= 0).all()) for item in result.series)
    return Quantiles(result.actual, result.quantiles[name][..., columns], result.scale, is_non_negative)


def save(quantiles: Quantiles, name: str) -> None:
    """Caches the quantiles under a name such as that of a set and a seed."""
    CACHE_FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(CACHE_FOLDER / f"{name}.npz", **quantiles._asdict())


def load(pattern: str) -> list[Quantiles]:
    """Loads all cached quantiles whose name matches a pattern."""
    return [
        Quantiles(content["actual"], content["values"], content["scale"], bool(content["is_non_negative"]))
        for content in (np.load(path) for path in sorted(CACHE_FOLDER.glob(f"{pattern}.npz")))
    ]


def measure_baselines(panel: Panel, dataset: Any, *, season: int) -> Iterator[tuple[str, Quantiles]]:
    """Yields the quantiles of baselines on the last window, with split conformal intervals and, of AutoETS, with its own.

    The conformal method is that of models: errors on up to three earlier windows, scaled by the seasonal naive's error.
    """
    horizon = dataset.horizon
    length = int(np.median([len(item) for item in panel.series]))
    windows = 1 + min(3, max(1, (length - 2 * horizon) // (2 * horizon)))
    forecasters = {SEASONAL: build_seasonal_naive(season)} | {
        name: statistical_baseline(model, season=season, jobs=2) for name, model in STATISTICAL.items()
    }
    result = backtest(
        panel, forecasters, horizon=horizon, windows=windows, season=season, min_history=MIN_CALIBRATION_STEPS
    )
    offsets = list(result.origin_offsets)
    scales = np.array(
        [[history_scale(item.y[: len(item) - offset], season) for offset in offsets] for item in result.series]
    )
    last = backtest(panel, forecasters, horizon=horizon, windows=1, season=season, min_history=2)
    last_scales = np.array([history_scale(item.y[:-horizon], season) for item in last.series])
    for name in forecasters:
        errors = (result.actual - result.forecasts[name])[:, :-1]
        calibration = calibrate(errors, scales[:, :-1])
        values = calibration.compute_offsets(SCORED_LEVELS, horizon=horizon, scales=np.nan_to_num(last_scales))
        quantiles = last.forecasts[name][..., None] + values[:, None]
        with_quantiles = _with_quantiles(last, name, quantiles)
        yield f"{name}, {CONFORMAL}", from_backtest(with_quantiles, name)
    for name, quantiles in _own_quantiles(last, season=season):
        yield f"{name}, {OWN}", from_backtest(_with_quantiles(last, name, quantiles), name)


def _with_quantiles(result: Backtest, name: str, quantiles: np.ndarray) -> Backtest:
    return replace(result, levels=SCORED_LEVELS, quantiles={name: quantiles})


def _own_quantiles(result: Backtest, *, season: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the quantiles that statsforecast computes itself; seasonal naive's where a model cannot be fitted."""
    from statsforecast.models import AutoETS, DynamicOptimizedTheta, SeasonalNaive

    shares = sorted({round(200 * abs(level - 0.5), 6) for level in SCORED_LEVELS} - {0.0})
    horizon = result.horizon
    models = {ETS: AutoETS(season_length=season), THETA: DynamicOptimizedTheta(season_length=season)}
    for name, model in models.items():
        rows = []
        for item in result.series:
            history = item.y[:-horizon]
            history = history[np.isfinite(history)]
            try:
                fitted = model.forecast(y=history, h=horizon, level=shares)
            except Exception:
                fitted = SeasonalNaive(season_length=min(season, len(history))).forecast(
                    y=history, h=horizon, level=shares
                )
            rows.append([_level_of(fitted, level) for level in SCORED_LEVELS])
        yield name, np.array(rows).transpose(0, 2, 1)[:, None]


def _level_of(fitted: Mapping[str, np.ndarray], level: float) -> np.ndarray:
    share = round(200 * abs(level - 0.5), 6)
    if share == 0:
        return fitted["mean"]
    return fitted[f"{'lo' if level < 0.5 else 'hi'}-{share}"]


def to_backtest(quantiles: Quantiles, panel: Panel) -> Backtest:
    """Returns cached quantiles as a backtest of the panel, with the median as the forecast."""
    windows, horizon = quantiles.actual.shape[1:]
    return Backtest(
        series=panel.series,
        cutoffs=[[item.end] * windows for item in panel.series],
        actual=quantiles.actual,
        forecasts={OURS: quantiles.at(0.5)},
        scale=quantiles.scale,
        square_scale=quantiles.scale**2,
        excluded_ids=(),
        stride=horizon,
        levels=SCORED_LEVELS,
        quantiles={OURS: quantiles.values},
    )


def report_lines(short_names: Sequence[str], load_panel_of: Callable[[str], Panel]) -> Iterator[str]:
    """Yields the lines of the report, from what is cached."""
    yield from _HEAD.splitlines()
    yield ""
    yield from _published_lines()
    yield ""
    yield from _short_lines(short_names)
    yield ""
    yield from _coverage_lines([*short_names, *PUBLISHED])
    yield ""
    yield from _decile_lines([*short_names, "car_parts"], load_panel_of)


def _decile_lines(names: Sequence[str], load_panel_of: Callable[[str], Panel]) -> Iterator[str]:
    yield "## Coverage of 80 % intervals in deciles"
    yield ""
    yield (
        "Of predicted width over the scale of MASE, and of volatility: the scale over the mean size of the history. In brackets "
        "the deciles, of ten, whose 95 % bootstrap interval over series does not reach 74 to 86 %. The first seed."
    )
    yield ""
    yield "| set | series | by width: lowest, highest | by volatility: lowest, highest |"
    yield "|---|---|---|---|"
    pooled: dict[str, list[pd.DataFrame]] = {"width": [], "volatility": []}
    for name in names:
        for run in load(f"{name}-ours-*")[:1]:
            result, cells = to_backtest(run, load_panel_of(name)), []
            for by in ("width", "volatility"):
                table = coverage_by_decile(result, OURS, share=0.8, by=by)
                missed = ((table["coverage_hi"] < 0.74) | (table["coverage_lo"] > 0.86)).sum()
                cells.append(f"{100 * table['coverage'].min():.0f} %, {100 * table['coverage'].max():.0f} % ({missed})")
                if name != "car_parts":
                    pooled[by].append(table)
            yield f"| {name} | {len(result.series)} | {' | '.join(cells)} |"
    if pooled["width"]:
        cells = []
        for tables in pooled.values():
            together = pd.concat(tables)
            hits = (together["coverage"] * together["n"]).groupby(together["decile"]).sum()
            coverage = hits / together["n"].groupby(together["decile"]).sum()
            cells.append(f"{100 * coverage.min():.0f} %, {100 * coverage.max():.0f} %")
        yield f"| short panels together, by decile within each | | {' | '.join(cells)} |"


def _published_lines() -> Iterator[str]:
    yield "## Weighted quantile loss beside published ones"
    yield ""
    yield f"| set | **ours** | range | pass, aim | {' | '.join(PUBLISHED_NAMES)} | seeds |"
    yield "|---|---|---|---|" + "---|" * (len(PUBLISHED_NAMES) + 1)
    for name, published in PUBLISHED.items():
        losses = [run.wql for run in load(f"{name}-ours-*")]
        if losses:
            targets = ", ".join(f"{target:.4f}" for target in TARGETS[name])
            cells = " | ".join(f"{published[model]:.4f}" for model in PUBLISHED_NAMES)
            span = f"{min(losses):.4f}-{max(losses):.4f}"
            yield f"| {name} | **{np.mean(losses):.4f}** | {span} | {targets} | {cells} | {len(losses)} |"


def _short_lines(names: Sequence[str]) -> Iterator[str]:
    columns = [f"{SEASONAL}, {CONFORMAL}"] + [f"{name}, {kind}" for name in STATISTICAL for kind in (CONFORMAL, OWN)]
    found = [name for name in names if load(f"{name}-ours-*") and all(load(f"{name}-{column}") for column in columns)]
    if not found:
        return
    yield "## Short panels: weighted quantile loss"
    yield ""
    yield f"| set | **ours** | {' | '.join(columns)} |"
    yield "|---|---|" + "---|" * len(columns)
    table = []
    for name in found:
        row = [float(np.mean([run.wql for run in load(f"{name}-ours-*")]))]
        row += [load(f"{name}-{column}")[0].wql for column in columns]
        table.append(row)
        yield f"| {name} | **{row[0]:.4f}** | {' | '.join(f'{value:.4f}' for value in row[1:])} |"
    ratios = np.exp(np.mean(np.log(np.array(table) / np.array(table)[:, [1]]), axis=0))
    yield (
        f"| geometric mean over seasonal naive, {len(found)} sets | **{ratios[0]:.3f}** | "
        f"{' | '.join(f'{value:.3f}' for value in ratios[1:])} |"
    )


def _coverage_lines(names: Sequence[str]) -> Iterator[str]:
    yield "## Coverage, interval score and width"
    yield ""
    yield "Pooled over series, windows and steps; the width of the 80 % interval in scales of MASE; the first seed."
    yield ""
    yield "| set | 80 % | 95 % | MSIS | width | negative quantiles |"
    yield "|---|---|---|---|---|---|"
    inside, total = np.zeros(2), 0
    for name in dict.fromkeys(names):
        runs = load(f"{name}-ours-*")[:1]
        for run in runs:
            shares = run.coverage(0.1, 0.9), run.coverage(0.025, 0.975)
            count = int(np.isfinite(run.actual).sum())
            if name not in PUBLISHED or name == "hospital":
                inside, total = inside + count * np.array(shares), total + count
            yield (
                f"| {name} | {100 * shares[0]:.1f} % | {100 * shares[1]:.1f} % | {run.msis:.2f} | {run.width:.2f} | "
                f"{run.negative if run.is_non_negative else '-'} |"
            )
    if total:
        pooled = inside / total
        yield f"| short panels together | {100 * pooled[0]:.1f} % | {100 * pooled[1]:.1f} % | | | |"


_HEAD = """# Quantile losses and coverage

`python benchmarks/accuracy.py`, then `python benchmarks/quantiles.py --baselines` and `python benchmarks/quantiles.py`. The same
trainings and test windows as in accuracy.md. Quantiles are those of the network without a blend, calibrated on the validation
windows, or on the second half of the histories where the pretrained network was chosen. The loss is GIFT-Eval's mean weighted sum
quantile loss over nine deciles. Baselines were measured here with statsforecast, with its own intervals and with split conformal
ones from up to three earlier windows."""


def main() -> None:
    """Measures the baselines, or writes the report."""
    from accuracy import SETS, SHORT_SETS, load_panel

    options = _parse_options()
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("Expected the folder shared/data in or beside the checkout; found none. Put the data sets there.")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if not options.baselines:

        def load_panel_of(name: str) -> Panel:
            return hold_out(load_panel(SETS[name], folder), SETS[name].horizon, min_history=2).full

        RESULT.write_text("\n".join(report_lines(list(SHORT_SETS), load_panel_of)) + "\n")
        print(f"wrote {RESULT.relative_to(ROOT)}")
        return
    for name in options.sets or SHORT_SETS:
        dataset = SHORT_SETS[name]
        panel = hold_out(load_panel(dataset, folder), 0, min_history=dataset.horizon + 2).history
        for label, quantiles in measure_baselines(panel, dataset, season=default_season(dataset.freq)):
            save(quantiles, f"{name}-{label}")
            print(f"{name}, {label}: {quantiles.wql:.4f}, 80 %: {100 * quantiles.coverage(0.1, 0.9):.1f} %", flush=True)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baselines", action="store_true", help="measure the baselines instead of writing the report")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=None, help="baselines of these sets only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
