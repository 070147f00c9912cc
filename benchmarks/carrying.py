"""Compares forecasts from the last window with forecasts from the whole history, using the same networks.

    python benchmarks/carrying.py                 about ten minutes on a free core
    python benchmarks/carrying.py --pretrained    the pretrained network only, which is not trained: half a minute

Reads hospital (which ships with the project) and m4_hourly and vic_elec from `shared/data` beside (or in) the checkout; missing
data sets are reported and skipped. All cutoffs are before the last test window of each data set and after the training data.
Writes benchmarks/results/carrying.md, of which `--pretrained` replaces the last part.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from forecaster.bundle.pretrained.base import specialize_base
from forecaster.data.calendar import default_season
from forecaster.data.datasets import load_hospital
from forecaster.data.frames.panel import to_panel
from forecaster.data.split import hold_out
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import seasonal_naive
from forecaster.metrics import nanmean
from forecaster.model.regressor import build_network
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel
from forecaster.spec import InputMode, Spec
from forecaster.training.fit import fit
from pipelines.sources import read_spec

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "carrying.md"
PRETRAINED_HEADING = "\n## The pretrained network"
PRETRAINED_CONTEXTS = {"hospital": 24, "m4_hourly": 168, "vic_elec": 336}  # those of the trained networks


class CarryGap(NamedTuple):
    """Distance between the two kinds of forecast, and the error of each, in units of the seasonal naive error.

    Attributes:
        distance: Mean absolute difference of the forecasts.
        window: MASE of the forecasts from windows.
        history: MASE of the forecasts from whole histories.
    """

    distance: float
    window: float
    history: float


def measure_carry_gap(model: FittedModel, panel: Panel, *, windows: int, stride: int | None = None) -> CarryGap:
    """Measures the gap at the last `windows` cutoffs of every series, `stride` steps apart (default: the horizon).

    Each mean is the mean over series of the mean of each series. Raises HistoryTooShort if no series has enough cutoffs, and
    BadSpec if the scaling of the model is not available for whole histories.
    """
    spec = model.spec
    result = backtest(
        panel,
        {reads: Predictor(with_reads(model, reads)) for reads in ("window", "history")},
        horizon=spec.horizon,
        windows=windows,
        season=model.season,
        min_history=spec.min_steps,
        stride=stride,
    )
    distance = np.abs(result.forecasts["history"] - result.forecasts["window"]) / result.scale[:, None, None]
    scores = {name: result.scores(name)["mase"] for name in result.forecasts}
    return CarryGap(float(nanmean(nanmean(distance, axis=(1, 2)))), scores["window"], scores["history"])


def with_reads(model: FittedModel, reads: InputMode, *, context: int | None = None) -> FittedModel:
    """Returns the same weights with another value of `reads` and, if given, another context.

    Raises BadSpec if the specification does not allow it.
    """
    spec = model.spec
    changes = {"reads": reads, "context": context or spec.context, "min_history": spec.min_steps}
    location = f"{spec.name!r} that reads {reads}"
    changed_spec = Spec.parse(spec.model_dump() | changes, where=location)
    encoding = model.encoding
    changed_networks = []
    for member in model.networks:
        network = build_network(
            changed_spec,
            seed=0,
            season=model.season,
            num_covariates=encoding.num_covariates,
            static_cardinalities=encoding.static_cardinalities,
        )
        network.load_state_dict(member.state_dict())
        changed_networks.append(network.eval())
    network, *others = changed_networks
    return replace(model, spec=changed_spec, network=network, other_networks=tuple(others), onnx_models=())


class CarryStudy(NamedTuple):
    """A panel, the networks to train on it, and the cutoffs to evaluate.

    Attributes:
        panel: The data without the last test window.
        fields: Specification fields by label.
        windows: Number of cutoffs, within the validation steps.
        stride: Steps between cutoffs.
    """

    panel: Panel
    fields: dict[str, dict[str, Any]]
    windows: int
    stride: int


def main() -> None:
    """Runs all studies, prints the report and writes it to the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of networks per row")
    parser.add_argument("--only", help="run one data set only; no file is written")
    parser.add_argument("--pretrained", action="store_true", help="measure the pretrained network only")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    trained = [] if options.pretrained else print_lines(report_lines(range(options.seeds), options.only))
    pretrained = print_lines(pretrained_lines(options.only))
    if options.only is None:
        first = RESULT.read_text().partition(PRETRAINED_HEADING)[0].splitlines() if options.pretrained else trained
        RESULT.write_text("\n".join([*first, *pretrained, ""]))


def print_lines(lines: Iterator[str]) -> list[str]:
    """Prints lines as they are computed, and returns them."""
    printed = []
    for line in lines:
        print(line, flush=True)
        printed.append(line)
    return printed


def report_lines(seeds: range, only: str | None) -> Iterator[str]:
    """Yields the lines of the report as soon as they are computed."""
    yield "# Last window or whole history with carried state"
    yield f"\n`python benchmarks/carrying.py`, torch {torch.__version__}, CPU, one thread; seeds {seeds[0]} to {seeds[-1]}.\n"
    yield (
        "MASE, mean over seeds (range), at cutoffs before the last test window and after the training data. *Window*, *full "
        "window* and *carried* are the same networks, with early stopping on forecasts from windows. They read the last window; "
        "the whole history as one window, again at each cutoff and in the scale of the whole history; or the whole history once, "
        "in the scale of its first context. *Distance* is the mean absolute difference between the window forecast and the "
        "carried forecast, divided by the error of the seasonal naive forecast. The networks of the last column had the same "
        "training, with early stopping on forecasts from whole histories.\n"
    )
    yield "| data, network | seasonal naive | window | full window | carried | distance | carried, selected on whole histories |"
    yield "|---|---|---|---|---|---|---|"
    for name, study in available_studies(only):
        for label, fields in study.fields.items():
            spec = Spec.parse(fields, where="carrying.py")
            naive = score_seasonal_naive(study, spec, season=spec.season or 1)
            models = [fit_network(study, fields, seed=seed, reads="window") for seed in seeds]
            gaps = [measure_gap(study, model) for model in models]
            columns = [
                [gap.window for gap in gaps],
                [mase_of_full_windows(study, model) for model in models],
                [gap.history for gap in gaps],
                [gap.distance for gap in gaps],
                [measure_gap(study, fit_network(study, fields, seed=seed, reads="history")).history for seed in seeds],
            ]
            yield f"| {name}, {label} | {naive:.3f} | {' | '.join(map(format_range, columns))} |"


def pretrained_lines(only: str | None) -> Iterator[str]:
    """Yields the lines of the report about the pretrained network, which has no seeds: it is not trained on the data."""
    yield PRETRAINED_HEADING
    yield (
        "\n`python benchmarks/carrying.py --pretrained`. The same cutoffs. *Window* reads the last steps only: as many as "
        "the trained networks above, and as many as its own context. *Carried* reads the whole history "
        "once; its scale follows the series as it is read, instead of being that of the first context.\n"
    )
    yield "| data, window | seasonal naive | window | carried | distance |"
    yield "|---|---|---|---|---|"
    for name, study in available_studies(only):
        fields = next(iter(study.fields.values()))
        season = fields["season"] or default_season(study.panel.freq)
        base = specialize_base(study.panel.freq, horizon=fields["horizon"], season=season).to_fitted_model()
        for context in sorted({PRETRAINED_CONTEXTS[name], base.spec.context}):
            model = with_reads(base, "window", context=context)
            naive = score_seasonal_naive(study, model.spec, season=season)
            gap = measure_gap(study, model)
            yield (
                f"| {name}, {context} steps | {naive:.3f} | {gap.window:.3f} | {gap.history:.3f} | {gap.distance:.3f} |"
            )


def score_seasonal_naive(study: CarryStudy, spec: Spec, *, season: int) -> float:
    """Returns the MASE of the seasonal naive forecast at the cutoffs of the study."""
    result = backtest(
        study.panel,
        {"naive": seasonal_naive(season)},
        horizon=spec.horizon,
        windows=study.windows,
        season=season,
        min_history=spec.min_steps,
        stride=study.stride,
    )
    return result.scores("naive")["mase"]


def fit_network(study: CarryStudy, fields: dict[str, Any], *, seed: int, reads: str) -> FittedModel:
    """Trains one network; early stopping uses the steps on which the network is evaluated later."""
    training = fields["training"] | {"seed": seed}
    spec = Spec.parse(fields | {"training": training, "reads": reads}, where="carrying.py")
    return fit(study.panel, spec, accelerator="cpu").model


def measure_gap(study: CarryStudy, model: FittedModel) -> CarryGap:
    """Measures the gap of one network on the cutoffs of the study."""
    return measure_carry_gap(model, study.panel, windows=study.windows, stride=study.stride)


def mase_of_full_windows(study: CarryStudy, model: FittedModel) -> float:
    """Returns the MASE of the network when the whole history up to each cutoff is one window."""
    segment, longest = model.spec.segment, max(map(len, study.panel.series))
    wide_model = with_reads(model, "window", context=-(-longest // segment) * segment)
    result = backtest(
        study.panel,
        {"model": Predictor(wide_model)},
        horizon=wide_model.spec.horizon,
        windows=study.windows,
        season=wide_model.season,
        min_history=wide_model.spec.min_steps,
        stride=study.stride,
    )
    return result.scores("model")["mase"]


def format_range(values: list[float]) -> str:
    """Formats the mean and the range."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def available_studies(only: str | None) -> Iterator[tuple[str, CarryStudy]]:
    """Yields the studies whose data files exist."""
    for name, load_study in {
        "hospital": hospital_study,
        "m4_hourly": m4_hourly_study,
        "vic_elec": vic_elec_study,
    }.items():
        if only not in (None, name):
            continue
        study = load_study()
        if study is None:
            print(
                f"Skipped {name}: expected {name}.parquet in shared/data in or beside the checkout; found none.",
                file=sys.stderr,
            )
        else:
            yield name, study


def hospital_study() -> CarryStudy:
    """Every month of the two years before the test year; the networks are trained without these two years."""
    fields = read_spec(ROOT / "configs" / "hospital_small.yaml").model_dump()
    fields["training"] |= {"valid_windows": 2}
    direct_fields = fields | {
        "decoder": "direct",
        "base": "last",
        "head": {"kind": "point", "loss": "mae"},
        "context": 24,
    }
    panel = hold_out(to_panel(load_hospital()), 12).history
    return CarryStudy(
        panel,
        {"rollout, context 15": fields, "direct, context 24, base last": direct_fields},
        13,
        1,
    )


def m4_hourly_study() -> CarryStudy | None:
    """Cutoffs in the two days before the test window of two days, and in the two days before those."""
    frame = read_shared_file("m4_hourly.parquet")
    if frame is None:
        return None
    fields = hourly_spec("m4_hourly", horizon=48, context=168, season=24, segment=24, windows=2)
    return CarryStudy(hold_out(to_panel(frame, freq="h"), 48).history, {"direct, segments of a day": fields}, 5, 12)


def vic_elec_study() -> CarryStudy | None:
    """Cutoffs in the 28 days before the test window of 14 days."""
    frame = read_shared_file("vic_elec.parquet")
    if frame is None:
        return None
    frame["ds"] = frame["ds"].dt.tz_localize("UTC")
    panel = hold_out(to_panel(frame[["unique_id", "ds", "y"]], freq="30min"), 14 * 48).history
    fields = hourly_spec("vic_elec", horizon=48, context=336, season=48, segment=12, windows=28)
    return CarryStudy(panel, {"direct, segments of six hours": fields}, 28 * 4 - 3, 12)


def hourly_spec(name: str, *, horizon: int, context: int, season: int, segment: int, windows: int) -> dict[str, Any]:
    """Returns the fields of a segmented direct network with the seasonal naive forecast as its base."""
    return {
        "name": name,
        "context": context,
        "horizon": horizon,
        "season": season,
        "segment": segment,
        "decoder": "direct",
        "base": "seasonal_naive",
        "scaling": "standard",
        "head": {"kind": "point", "loss": "mae"},
        "network": {"cell": "gru", "hidden": 64},
        "training": {
            "steps": 800,
            "epoch_steps": 50,
            "batch": 64,
            "learning_rate": 0.003,
            "valid_windows": windows,
        },
    }


def read_shared_file(name: str) -> pd.DataFrame | None:
    """Reads a file of the shared data; returns None if it does not exist."""
    for folder in (ROOT, ROOT.parent):
        file = folder / "shared" / "data" / name
        if file.exists():
            return pd.read_parquet(file)
    return None


if __name__ == "__main__":
    sys.exit(main())
