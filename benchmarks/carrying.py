"""Does it help to read a whole history with the state carried, rather than its last window? The same networks, both ways.

    python benchmarks/carrying.py       about ten minutes on a free core

Reads hospital (which ships with the project) and, from `read_shared_file/data` beside (or in) the checkout, m4_hourly and vic_elec; says
so where they are not there. All origins lie before the last test window of each set, and after all that was trained on.
Writes benchmarks/results/carrying.md.
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


class CarryGap(NamedTuple):
    """How far the two readings are from each other and from the truth, in errors of the seasonal naive forecast.

    Attributes:
        distance: Mean absolute difference of their forecasts.
        window: MASE of the forecasts from windows.
        history: MASE of those from whole histories.
    """

    distance: float
    window: float
    history: float


def measure_carry_gap(model: FittedModel, panel: Panel, *, windows: int, stride: int | None = None) -> CarryGap:
    """The gap on the last `windows` origins of every series, `stride` apart (a horizon, if not given).

    Every mean is one over the series' own means. Raises HistoryTooShort if no series has so many origins, BadSpec if the
    forecaster's scaling is none for whole histories.
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
    apart = np.abs(result.forecasts["history"] - result.forecasts["window"]) / result.scale[:, None, None]
    means = {name: result.scores(name)["mase"] for name in result.forecasts}
    return CarryGap(float(nanmean(nanmean(apart, axis=(1, 2)))), means["window"], means["history"])


def with_reads(model: FittedModel, reads: InputMode, *, context: int | None = None) -> FittedModel:
    """The same weights behind another reading of histories, and another context, if one is given.

    Raises BadSpec where the specification does not allow it.
    """
    spec = model.spec
    fields = {"reads": reads, "context": context or spec.context, "min_history": spec.min_steps}
    where = f"{spec.name!r} that reads {reads}"
    changed = Spec.parse(spec.model_dump() | fields, where=where)
    encoding = model.encoding
    changed_networks = []
    for member in model.networks:
        network = build_network(
            changed,
            seed=0,
            season=model.season,
            num_covariates=encoding.num_covariates,
            static_cardinalities=encoding.static_cardinalities,
        )
        network.load_state_dict(member.state_dict())
        changed_networks.append(network.eval())
    network, *others = changed_networks
    return replace(model, spec=changed, network=network, other_networks=tuple(others), onnx_models=())


class CarryStudy(NamedTuple):
    """Networks to train on a panel, and the origins to ask them at.

    Attributes:
        panel: All but the last test window.
        fields: By name, the specification.
        windows: How many origins, on the steps that are validated on.
        stride: Steps between them.
    """

    panel: Panel
    fields: dict[str, dict[str, Any]]
    windows: int
    stride: int


def main() -> None:
    """Runs all, prints it and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="networks a row")
    parser.add_argument("--only", help="one of the data sets; nothing is written down")
    options = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    lines = []
    for line in report_lines(range(options.seeds), options.only):
        print(line, flush=True)
        lines.append(line)
    if options.only is None:
        (ROOT / "benchmarks" / "results" / "carrying.md").write_text("\n".join([*lines, ""]))


def report_lines(seeds: range, only: str | None) -> Iterator[str]:
    """The lines of the report, as they are found."""
    yield "# A window, or the whole history with the state carried"
    yield f"\n`python benchmarks/carrying.py`, torch {torch.__version__}, CPU, one thread; seeds {seeds[0]} to {seeds[-1]}.\n"
    yield (
        "MASE, mean over seeds (range), at origins before the last test window and after all that was trained on. *Window*, "
        "*all of it anew* and *carried* are the same networks, which early stopping chose by their forecasts from windows: asked "
        "with their window; with the whole history as one window, read anew at each origin in the scale of all of it; and with "
        "the whole history read once, in the scale of its first context. *Distance* is the mean absolute difference of the first "
        "and the third forecast over the error of the seasonal naive. The networks of the last column were trained the same, and "
        "chosen by their forecasts from whole histories.\n"
    )
    yield "| data, network | seasonal naive | window | all of it anew | carried | distance | carried, chosen so |"
    yield "|---|---|---|---|---|---|---|"
    for name, study in available_studies(only):
        for label, fields in study.fields.items():
            plain = Spec.parse(fields, where="carrying.py")
            naive = backtest(
                study.panel,
                {"it": seasonal_naive(plain.season or 1)},
                horizon=plain.horizon,
                windows=study.windows,
                season=plain.season or 1,
                min_history=plain.min_steps,
                stride=study.stride,
            ).scores("it")["mase"]
            same = [fit_network(study, fields, seed=seed, reads="window") for seed in seeds]
            gaps = [measure_gap(study, each) for each in same]
            columns = [
                [gap.window for gap in gaps],
                [mase_of_full_windows(study, each) for each in same],
                [gap.history for gap in gaps],
                [gap.distance for gap in gaps],
                [measure_gap(study, fit_network(study, fields, seed=seed, reads="history")).history for seed in seeds],
            ]
            yield f"| {name}, {label} | {naive:.3f} | {' | '.join(map(format_range, columns))} |"


def fit_network(study: CarryStudy, fields: dict[str, Any], *, seed: int, reads: str) -> FittedModel:
    """One network, early-stopped on the steps that it is asked for later."""
    training = fields["training"] | {"seed": seed}
    spec = Spec.parse(fields | {"training": training, "reads": reads}, where="carrying.py")
    return fit(study.panel, spec, accelerator="cpu").model


def measure_gap(study: CarryStudy, model: FittedModel) -> CarryGap:
    """The network asked both ways."""
    return measure_carry_gap(model, study.panel, windows=study.windows, stride=study.stride)


def mase_of_full_windows(study: CarryStudy, model: FittedModel) -> float:
    """MASE of the network where every history, up to its origin, is one window."""
    segment, longest = model.spec.segment, max(map(len, study.panel.series))
    wide = with_reads(model, "window", context=-(-longest // segment) * segment)
    result = backtest(
        study.panel,
        {"it": Predictor(wide)},
        horizon=wide.spec.horizon,
        windows=study.windows,
        season=wide.season,
        min_history=wide.spec.min_steps,
        stride=study.stride,
    )
    return result.scores("it")["mase"]


def format_range(values: list[float]) -> str:
    """Mean and range."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def available_studies(only: str | None) -> Iterator[tuple[str, CarryStudy]]:
    """All whose data are there."""
    for name, study in {"hospital": hospital_study, "m4_hourly": m4_hourly_study, "vic_elec": vic_elec_study}.items():
        if only not in (None, name):
            continue
        found = study()
        if found is None:
            print(f"Left out: no {name}.parquet in shared/data beside the checkout.", file=sys.stderr)
        else:
            yield name, found


def hospital_study() -> CarryStudy:
    """Every month of the last but one year and the one before: trained without both, asked for each twelve months of them."""
    fields = read_spec(ROOT / "configs" / "hospital.yaml").model_dump()
    fields["training"] |= {"valid_windows": 2}
    direct = fields | {"decoder": "direct", "base": "last", "head": {"kind": "point", "loss": "mae"}, "context": 24}
    panel = hold_out(to_panel(load_hospital()), 12).history
    return CarryStudy(
        panel,
        {"rollout, context 15": fields, "direct, context 24, base last": direct},
        13,
        1,
    )


def m4_hourly_study() -> CarryStudy | None:
    """The two days before the last two, and the two before them."""
    frame = read_shared_file("m4_hourly.parquet")
    if frame is None:
        return None
    fields = hourly_spec("m4_hourly", horizon=48, context=168, season=24, segment=24, windows=2)
    return CarryStudy(hold_out(to_panel(frame, freq="h"), 48).history, {"direct, segments of a day": fields}, 5, 12)


def vic_elec_study() -> CarryStudy | None:
    """The 28 days before the last 14."""
    frame = read_shared_file("vic_elec.parquet")
    if frame is None:
        return None
    frame["ds"] = frame["ds"].dt.tz_localize("UTC")
    panel = hold_out(to_panel(frame[["unique_id", "ds", "y"]], freq="30min"), 14 * 48).history
    fields = hourly_spec("vic_elec", horizon=48, context=336, season=48, segment=12, windows=28)
    return CarryStudy(panel, {"direct, segments of six hours": fields}, 28 * 4 - 3, 12)


def hourly_spec(name: str, *, horizon: int, context: int, season: int, segment: int, windows: int) -> dict[str, Any]:
    """A direct network in segments that corrects the seasonal naive."""
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
    """A file of the shared data, where it is."""
    for folder in (ROOT, ROOT.parent):
        file = folder / "shared" / "data" / name
        if file.exists():
            return pd.read_parquet(file)
    return None


if __name__ == "__main__":
    sys.exit(main())
