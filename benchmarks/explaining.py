"""What networks remember and what their units follow, beside season, context and chance.

    python benchmarks/explaining.py    about four minutes on a free core

Trains a small GRU on hospital and on M4 hourly, and compares it with the same network before the training and with the
pretrained one. Reads m4_hourly.parquet from `shared/data` beside (or in) the checkout, and exits with a message if it is
missing. Writes benchmarks/results/explaining.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from forecaster.bundle.pretrained.base import specialize_to_panel
from forecaster.data.datasets import load_hospital
from forecaster.data.frames.panel import to_panel
from forecaster.explain.associations import associate_clock, associate_series, associate_time
from forecaster.explain.atlas import Atlas, build_atlas
from forecaster.explain.memory import measure_memory
from forecaster.explain.signals import Clock
from forecaster.explain.states import trace_states
from forecaster.model.regressor import build_network
from forecaster.prediction.fitted_model import FittedModel
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.sequence import train_model

ROOT = Path(__file__).parent.parent
SEED = 0
NUM_TRACED, NUM_MEASURED = 32, 8  # series of the atlas, and of the half-lives
CALIBRATION_RUNS, CALIBRATION_UNITS, CALIBRATION_STEPS, PERMUTATIONS = 100, 20, 144, 499
NETWORK = {"cell": "gru", "layers": 2, "hidden": 32}
TRAINING = {
    "batch": 128,
    "learning_rate": 0.005,
    "schedule": "cosine",
    "average": 0.99,
    "weighting": "seasonal_error",
    "seed": SEED,
}
FIELDS = {"decoder": "direct", "head": {"kind": "point", "loss": "mae"}, "scaling": "standard", "network": NETWORK}


class DataSet(NamedTuple):
    """A data set, the fields of the specification that depend on it, and a season that the data do not have."""

    name: str
    fields: dict[str, Any]
    false_season: int


HOSPITAL = {"context": 72, "reads": "history", "horizon": 12, "season": 12, "min_history": 24}
HOURLY = {"context": 168, "reads": "window", "horizon": 48, "season": 24, "min_history": 96}
DATA_SETS = (
    DataSet("hospital", HOSPITAL | {"training": TRAINING | {"steps": 400}}, false_season=7),
    DataSet("M4 hourly", HOURLY | {"training": TRAINING | {"steps": 600}}, false_season=17),
)


class Row(NamedTuple):
    """The measurements of one network."""

    network: str
    half_life: float
    median_unit: float
    beyond_season: float
    atlas: Atlas
    false_season: int


def main() -> None:
    """Measures all networks, prints the report and writes it to the result file."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    path = next((folder / "data" / "m4_hourly.parquet" for folder in find_shared() if folder.exists()), None)
    if path is None or not path.exists():
        sys.exit("Expected shared/data/m4_hourly.parquet beside the checkout or in it; found none. Put the file there.")
    hourly = pd.read_parquet(path).groupby("unique_id").tail(672)
    panels = {"hospital": to_panel(load_hospital()), "M4 hourly": to_panel(hourly)}
    lines = [
        "# Memory, and what units follow",
        "",
        f"`python benchmarks/explaining.py`, torch {torch.__version__}, CPU, one thread; seed {SEED}.",
        "",
        f"Half-lives: median over {NUM_MEASURED} series at equal distances in the data, in steps. Units: of the atlas "
        f"over {NUM_TRACED} such series. *Beyond chance*: corrected over all units and signals, with a probability of "
        "about 5 % that anything is reported by chance. *By p alone*: units with an uncorrected p of at most 0.05, of which "
        "chance gives 5 %. *False season*: the season was given as one that the data do not have. Fits end one horizon "
        "before the data do; half-lives and atlas are measured at their end. Nothing was chosen by these numbers.",
        "",
    ]
    for data_set in DATA_SETS:
        lines += [*report(data_set, panels[data_set.name]), ""]
    lines += [*calibrate(), ""]
    text = "\n".join(lines)
    print(text)
    (ROOT / "benchmarks" / "results" / "explaining.md").write_text(text)


def find_shared() -> list[Path]:
    """Returns the folders that may hold the data."""
    return [ROOT / "shared", ROOT.parent / "shared"]


def report(data_set: DataSet, panel: Panel) -> Iterator[str]:
    """Trains and measures the networks of one data set, and yields the lines of its table."""
    spec = Spec.parse({"name": "gru", **FIELDS, **data_set.fields}, where="here")
    trained = train_model(panel, spec)
    model = trained.model
    untrained = replace(model, network=build_network(spec, seed=SEED, season=model.season), other_networks=())
    pretrained = specialize_to_panel(panel).to_fitted_model()
    rows = [
        measure(name, network, panel, data_set.false_season)
        for name, network in (("trained GRU", model), ("the same, untrained", untrained), ("pretrained", pretrained))
    ]
    scores = ", ".join(
        f"{name.replace('challenger', 'the trained GRU').replace('_', ' ')} {values['mase']:.3f}"
        for name, values in model.facts["backtest"].items()
    )
    yield f"## {data_set.name}"
    yield ""
    yield (
        f"{len(panel.series)} series; season {model.season}, context of the GRU {spec.context} steps, of the pretrained network "
        f"{pretrained.spec.context} in segments of {pretrained.spec.segment}. MASE in the last {spec.horizon} steps: {scores}."
    )
    yield ""
    yield (
        "| network | half-life | median unit | units with a half-life above the season | follow the season, beyond chance | by p "
        "alone | by chance | follow the false season, beyond chance | follow most |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield format_row(row)


def measure(name: str, model: FittedModel, panel: Panel, false_season: int) -> Row:
    """Measures the memory and the atlas of one model."""
    chosen = np.linspace(0, len(panel.series) - 1, NUM_TRACED).round().astype(int)
    series = [panel.series[index] for index in chosen.tolist()]
    decays = [measure_memory(model, item)[0] for item in series[:: NUM_TRACED // NUM_MEASURED]]
    overall = [np.inf if decay.half_life is None else decay.half_life for decay in decays]
    units = np.median([decay.half_lives for decay in decays], axis=0)
    traces = trace_states(model, series, whole_history=True)
    false_atlas = build_atlas(traces, season=false_season)
    return Row(
        name,
        float(np.median(overall)),
        float(np.median(units)),
        float((units > model.season).sum()),
        build_atlas(traces, season=model.season),
        false_atlas.count_significant().get("season", 0),
    )


def format_row(row: Row) -> str:
    """Formats the measurements of one network as a row of the table."""
    table = row.atlas.table[row.atlas.table["signal"] == "season"]
    num_units = row.atlas.num_units
    most = ", ".join(f"{name} {count}" for name, count in row.atlas.count_followers().items())
    cells = (
        row.network,
        f"{row.half_life:.3g}",
        f"{row.median_unit:.3g}",
        f"{row.beyond_season:.0f} of {num_units}",
        f"{int((table['p_adjusted'] <= row.atlas.rate).sum())} of {num_units}",
        str(int((table["p"] <= 0.05).sum())),
        f"{0.05 * num_units:.0f}",
        str(row.false_season),
        most or "none",
    )
    return f"| {' | '.join(cells)} |"


def calibrate() -> Iterator[str]:
    """Measures how often states without any relation to the signals have a p of at most 0.05, and yields the table."""
    yield "## Chance"
    yield ""
    yield (
        f"Share of units with an uncorrected p of at most 0.05: states, and values, are independent autoregressions of order one "
        f"with this coefficient, {CALIBRATION_STEPS} steps; season 12, {CALIBRATION_UNITS} units, {CALIBRATION_RUNS} runs. *By "
        "circular shifts*: value, with a baseline that shifts each series by a random number of steps; it is not used."
    )
    yield ""
    yield "| coefficient | series | value | level | time | season | value, by circular shifts |"
    yield "|---|---|---|---|---|---|---|"
    for memory in (-0.5, 0.0, 0.5, 0.9, 1.0):
        for num_series in (4, 12):
            rates: dict[str, list[float]] = {}
            for run in range(CALIBRATION_RUNS):
                rng = np.random.default_rng([SEED, run, num_series])
                for name, p in measure_chance(memory, num_series, rng).items():
                    rates.setdefault(name, []).append(float(np.where(np.isnan(p), np.nan, p <= 0.05).mean()))
            cells = ["not tested" if np.isnan(values).any() else f"{np.mean(values):.3f}" for values in rates.values()]
            yield f"| {memory:g} | {num_series} | {' | '.join(cells)} |"


def measure_chance(memory: float, num_series: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the p values of units that have no relation to any signal."""
    states = [make_autoregression(rng, memory, CALIBRATION_UNITS) for _ in range(num_series)]
    values = [make_autoregression(rng, memory, 1)[:, 0] for _ in range(num_series)]
    signals = [{"value": item, "level": pd.Series(item).rolling(12).mean().to_numpy()} for item in values]
    grid, windows = np.arange(CALIBRATION_STEPS), np.zeros(CALIBRATION_STEPS, dtype=np.int64)
    associations = [
        *associate_series(states, signals, ["value", "level"], permutations=PERMUTATIONS, rng=rng),
        associate_time(states, [windows] * num_series, permutations=PERMUTATIONS, rng=rng),
        associate_clock(
            states,
            [grid] * num_series,
            [windows] * num_series,
            Clock("season", 12.0, (1, 2, 3)),
            permutations=PERMUTATIONS,
            rng=rng,
        ),
    ]
    found = {association.signal: association.p for association in associations}
    return found | {"circular": shift_circularly(states, values, rng)}


def shift_circularly(states: list[np.ndarray], values: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Returns p values by a baseline that shifts the values of each series by a random number of steps."""

    def correlate(shifts: np.ndarray) -> np.ndarray:
        parts = [
            np.roll((item - item.mean()) / item.std(), shift) @ ((state - state.mean(0)) / state.std(0)) / len(item)
            for item, state, shift in zip(values, states, shifts, strict=True)
        ]
        return np.abs(np.mean(parts, axis=0))

    observed = correlate(np.zeros(len(values), dtype=np.int64))
    null = np.stack([correlate(rng.integers(0, CALIBRATION_STEPS, len(values))) for _ in range(199)])
    p: np.ndarray = (1 + (null >= observed).sum(axis=0)) / (1 + len(null))
    return p


def make_autoregression(rng: np.random.Generator, memory: float, columns: int) -> np.ndarray:
    """Returns columns of an autoregression of order one, after 200 steps of it."""
    values = rng.normal(size=(CALIBRATION_STEPS + 200, columns))
    for step in range(1, len(values)):
        values[step] += memory * values[step - 1]
    return values[200:]


if __name__ == "__main__":
    main()
