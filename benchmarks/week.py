"""Two weeks of a service that is trained again at night: real hourly series, with a change planted in the middle.

    python benchmarks/week.py               MINUTES minutes on two free cores
    python benchmarks/week.py --dry         other series and fewer nights, for looking: nothing is written down

Reads m4_hourly.parquet from `shared/data` beside (or in) the checkout, and says so where it is not there. Works in a root that
is gone afterwards. Writes benchmarks/results/week.md and docs/pictures/week.png.

Every midnight the day's truth comes to the ledger, the monitor looks at each model, those that are trained again are trained,
judged by the gate and promoted or not, and whoever is champion then forecasts the day that follows.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from forecaster import artifact
from forecaster.data.frames import to_panel
from forecaster.evaluation.baselines import Ask, seasonal_naive
from forecaster.evaluation.plots import BASELINE, FORECAST, GRID, HISTORY, TRUTH
from forecaster.ledger.making import Keeping, made
from forecaster.ledger.records import Observed, Told, key_of, ticks
from forecaster.ledger.store import Ledger
from forecaster.metrics import seasonal_error
from forecaster.predict import Predictor
from forecaster.presets import candidates
from forecaster.registry import CHAMPION, Registry
from forecaster.series import Forecast, Panel, Series
from forecaster.shapes import Float64
from forecaster.spec import Spec
from pipelines.monitoring import Finding, ledger_of, look
from pipelines.need import need
from pipelines.once import retrain_once
from pipelines.promotion import Verdict
from pipelines.releases import champion_of, fetch
from pipelines.settings import Root
from pipelines.sources import Data

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "week.md"
PICTURE = ROOT / "docs" / "pictures" / "week.png"
DAY = 24
START = pd.Timestamp("2026-01-05")  # as if all series had begun at this midnight
EVEN = 10.0  # seasonal naive errors to the level
TRAINED_ON = 960  # steps of the long series that M4 gave to train on; its test is left alone
FROZEN, NIGHTLY, IF_NEEDED, NAIVE = "frozen", "nightly", "if_needed", "seasonal naive"
MODELS = (FROZEN, NIGHTLY, IF_NEEDED)
STYLES = {
    NAIVE: {"color": BASELINE, "linestyle": "--", "linewidth": 1.2},
    FROZEN: {"color": HISTORY, "linewidth": 1.4},
    NIGHTLY: {"color": TRUTH, "linewidth": 1.8},
    IF_NEEDED: {"color": FORECAST, "linewidth": 1.8},
}


class Change(NamedTuple):
    """What becomes of the series: all of them are multiplied, and every second one comes some hours later than before."""

    name: str
    factor: float
    hours: int


CHANGES = (Change("level and daily peak", 1.4, 3), Change("level alone", 1.4, 0))


class Plan(NamedTuple):
    """How long, and with what.

    Attributes:
        history: Days that are known on the first night.
        nights: That are lived through.
        change: The night from which on everything is different.
        fields: Of the specification, beside those of the preset.
        new_steps: That call for a training if_needed, whatever the monitor says.
    """

    history: int
    nights: int
    change: int
    fields: Mapping[str, Any]
    new_steps: int = 14 * DAY


PLAN = Plan(
    history=23,
    nights=16,
    change=6,
    fields={
        "context": 7 * DAY,
        "network": {"hidden": 32},
        "training": {"steps": 500, "epoch_steps": 100, "batch": 64, "valid_windows": 2},
    },
)


class Night(NamedTuple):
    """What happened to one model in one night.

    Attributes:
        noticed: What the monitor found wrong with the champion, before anything was trained.
        asked: Why it was trained; empty where it was not.
        verdict: The gate's, of what was trained.
        seconds: Of training and judging.
    """

    noticed: Sequence[Finding] = ()
    asked: Sequence[str] = ()
    verdict: Verdict | None = None
    seconds: float = 0.0

    @property
    def promoted(self) -> bool:
        """Whether another forecasts from this night on."""
        return self.verdict is not None and self.verdict.promote

    @property
    def proven(self) -> bool:
        """Whether what was refused had proved better than the champion."""
        passed = [] if self.verdict is None else [one.passed for one in self.verdict.checks if one.name == CHAMPION]
        return not self.promoted and True in passed

    @property
    def told(self) -> str:
        """What happened, in a few words."""
        if self.verdict is None:
            return ""
        return "promoted" if self.promoted else f"refused ({', '.join(self.verdict.failed)})"


class Lived(NamedTuple):
    """All nights under one change.

    Attributes:
        change: Which.
        plan: By which they were lived.
        nights: By model.
        errors: By model, and of seasonal naive: scaled absolute errors by night and series, each in units of the seasonal naive
            error of the history before the first night, times the factor from the change on.
    """

    change: Change
    plan: Plan
    nights: Mapping[str, Sequence[Night]]
    errors: Mapping[str, Float64[np.ndarray, "night series"]]


def changed(panel: Panel, change: Change, *, at: int) -> Panel:
    """The panel with a change from step `at` on, in all series or in every second one."""

    def one(place: int, series: Series) -> Series:
        y = series.y.copy()
        later = change.hours if place % 2 else 0
        y[at:] = change.factor * series.y[at - later : len(y) - later]
        return replace(series, y=y)

    return panel._replace(series=[one(place, series) for place, series in enumerate(panel.series)])


def live(panel: Panel, change: Change, plan: Plan, folder: Path) -> Lived:
    """Lives through all nights, in a fresh root in `folder`, with the truth of `panel`."""
    at = (plan.history + plan.change) * DAY
    truth = changed(panel, change, at=at)
    file = folder / "hours.parquet"
    pd.concat(pd.DataFrame({"unique_id": one.id, "ds": one.stamps, "y": one.y}) for one in truth.series).to_parquet(
        file
    )
    root = Root(folder / "root")
    root.slot.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(ledger_of(root, None))
    scales = np.array([seasonal_error(one.y[: plan.history * DAY], season=DAY) for one in truth.series])
    nights: dict[str, list[Night]] = {name: [] for name in MODELS}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in (*MODELS, NAIVE)}
    for night in range(plan.nights):
        midnight = (plan.history + night) * DAY
        known = [one.until(midnight) for one in truth.series]
        if night:
            tell(ledger, known)
        data = Data(str(file), freq="h", cutoff=str(known[0].end))
        for name in MODELS:
            nights[name].append(spend(name, data, specified(panel, plan, name), root, plan, first=night == 0))
        scale = scales * (change.factor if night >= plan.change else 1.0)
        actual = np.stack([one.y[midnight : midnight + DAY] for one in truth.series])
        asked: dict[str, Ask] = {name: served(name, root, ledger) for name in MODELS} | {NAIVE: seasonal_naive(DAY)}
        for name, ask in asked.items():
            errors[name].append(np.abs(means(ask, known) - actual).mean(axis=1) / scale)
        print(_cells(night, nights, {name: float(found[-1].mean()) for name, found in errors.items()}), flush=True)
    ledger.close()
    return Lived(change, plan, nights, {name: np.array(found) for name, found in errors.items()})


def specified(panel: Panel, plan: Plan, name: str) -> Spec:
    """The first preset of hourly data, made small enough for two weeks in minutes."""
    known = panel._replace(series=[one.until(plan.history * DAY) for one in panel.series])
    fields = candidates(known, horizon=DAY, name=name)[0].model_dump()
    for field, value in plan.fields.items():
        fields[field] = {**fields[field], **value} if isinstance(value, Mapping) else value
    return Spec.parse(fields, where="benchmarks/week.py")


def spend(name: str, data: Data, spec: Spec, root: Root, plan: Plan, *, first: bool) -> Night:
    """One night of one model: the monitor looks, and it is trained again where that is asked for."""
    noticed = [] if first else [one for one in look(root, name).findings if one.calls]
    asked: Sequence[str] = ()
    if first or name == NIGHTLY:
        asked = ("the first night" if first else "every night",)
    elif name == IF_NEEDED:
        asked = need(
            name, data, root, min_new=plan.new_steps, watches=[lambda: [one.reason for one in noticed]]
        ).reasons
    if not asked:
        return Night(noticed)
    started = time.perf_counter()
    done = retrain_once(data, spec, root, trigger="schedule").done
    return Night(noticed, asked, done.verdict, time.perf_counter() - started)


def served(name: str, root: Root, ledger: Ledger) -> Ask:
    """The champion, as a service asks it: what it says is kept in the ledger."""
    version = champion_of(Registry(root.store), name)
    if version is None:
        sys.exit(f"The gate refused the first {name} model; there is nothing to serve. Give it more steps.")
    predictor = Predictor(artifact.load(fetch(version, root)))
    model, keeping = Told(name, version.number, version.digest), Keeping(ledger.salt, clear=False)

    def ask(series: Sequence[Series], horizon: int) -> list[Any]:
        told = predictor.forecast_each(series, horizon)
        good = [one for one in told if isinstance(one, Forecast)]
        now = series[0].end.timestamp()  # type: ignore[union-attr]
        ledger.record(made(predictor, model, series, good, keeping=keeping, drift=None, at=[now] * len(series)))
        return told

    return ask


def means(ask: Ask, known: Sequence[Series]) -> Float64[np.ndarray, "series horizon"]:
    """The forecasts of the next day; a refusal is raised, for there is none to expect."""
    told = ask(known, DAY)
    for one in told:
        if not isinstance(one, Forecast):
            raise one
    return np.stack([one.mean for one in told if isinstance(one, Forecast)])


def tell(ledger: Ledger, known: Sequence[Series]) -> None:
    """The last day of what is known comes to the ledger."""
    observed = [
        Observed(key_of(ledger.salt, one.id, one.start), ticks(one.stamps[-DAY:]), one.y[-DAY:].tolist())  # type: ignore[arg-type]
        for one in known
    ]
    ledger.observe(observed, at=known[0].end.timestamp())  # type: ignore[union-attr]


def read(folder: Path, *, first: int) -> Panel:
    """Every fourth of the long series that are not `too_even`, as if they had begun at one midnight, up to M4's own cutoff."""
    frame = pd.read_parquet(folder / "m4_hourly.parquet")
    frame["step"] = frame.groupby("unique_id").cumcount()
    long = frame.groupby("unique_id")["step"].transform("size") > TRAINED_ON
    skipped = DAY // 2  # they begin at noon
    frame = frame[long & frame["step"].between(skipped, TRAINED_ON - 1)]
    frame["ds"] = START + pd.to_timedelta(frame["step"] - skipped, unit="h")
    panel = to_panel(frame[["unique_id", "ds", "y"]], freq="h")
    return panel._replace(series=[one for one in panel.series if not too_even(one.y[: PLAN.history * DAY])][first::4])


def too_even(y: Float64[np.ndarray, "step"]) -> bool:
    """Whether 40 % of the level is many times what a day differs from the day before: no forecaster lives through that."""
    return float(y.mean()) > EVEN * seasonal_error(y, season=DAY)


def main() -> None:
    """Lives through two weeks twice, prints what happened, and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="other series and fewer nights; nothing is written")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    folder = next((path for path in (ROOT / "shared" / "data", ROOT.parent / "shared" / "data") if path.is_dir()), None)
    if folder is None:
        sys.exit("The series are not there: expected the folder shared/data in or beside the checkout.")
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    panel, plan = read(folder, first=2 if options.dry else 0), PLAN
    if options.dry:
        plan = plan._replace(nights=10, change=3)
    lived = []
    for change in CHANGES[:1] if options.dry else CHANGES:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            lived.append(live(panel, change, plan, Path(place)))
        print(f"{change.name}: {time.perf_counter() - started:.0f} s")
        text = report(lived, series=len(panel.series), threads=options.threads)
        if not options.dry:
            RESULT.write_text(text)
            picture(lived).savefig(PICTURE)
    print(text)


def report(lived: Sequence[Lived], *, series: int, threads: int) -> str:
    """All of it as Markdown."""
    plan = lived[0].plan
    head = f"""# Two weeks of nights

`python benchmarks/week.py`: {series} series of m4_hourly, {plan.history} days known on the first night, {plan.nights}
nights; torch {torch.__version__}, CPU, {threads} threads. The first preset of hourly data made small ({json.dumps(plan.fields)}), chosen on
other series of the set. In the night to day {plan.change + 1} the truth changes for good. MASE is in units of the seasonal naive
error before the first night, times {lived[0].change.factor:g} from the change on, and of the day that follows the night. Gate and
monitor are as they come; if_needed is trained when the monitor calls or {plan.new_steps} new hours are there.

![MASE by day, and what was done in which night](../../docs/pictures/week.png)
"""
    return head + "\n".join(_of_change(one) for one in lived)


def _of_change(lived: Lived) -> str:
    first = lived.plan.change
    spans = {
        "before": slice(0, first),
        "days 1-3 after": slice(first, first + 3),
        "days 4-7": slice(first + 3, first + 7),
    }
    spans["later"] = slice(first + 7, None)
    what = f"all series times {lived.change.factor:g}"
    what += f", and every second one {lived.change.hours} hours later" if lived.change.hours else ""
    lines = [f"\n## A change of {lived.change.name}: {what}\n"]
    lines += [
        f"| MASE | {' | '.join(spans)} | trained | promoted | refused, proven better than the champion | seconds a training |"
    ]
    lines += ["|---" * (len(spans) + 5) + "|"]
    for name, errors in lived.errors.items():
        cells = [f"{errors[span].mean():.3f}" if errors[span].size else "" for span in spans.values()]
        trained = [one for one in lived.nights.get(name, ()) if one.verdict is not None]
        seconds = f"{np.median([one.seconds for one in trained]):.1f}" if trained else ""
        counts = [len(trained), sum(one.promoted for one in trained), sum(one.proven for one in trained)]
        told = " | ".join(map(str, counts)) if trained else " | | "
        lines.append(f"| {name} | {' | '.join(cells)} | {told} | {seconds} |")
    lines += ["", f"| day | {' | '.join(lived.errors)} | noticed of frozen | nightly | if_needed |", "|---" * 8 + "|"]
    for night in range(lived.plan.nights):
        until = {name: found[: night + 1] for name, found in lived.nights.items()}
        mase = {name: float(found[night].mean()) for name, found in lived.errors.items()}
        lines.append(_cells(night, until, mase, mark="**" if night == first else ""))
    return "\n".join(lines) + "\n"


def _cells(night: int, nights: Mapping[str, Sequence[Night]], mase: Mapping[str, float], *, mark: str = "") -> str:
    """A row of the second table: errors of the day, and what the last of some nights was."""
    noticed = ", ".join(one.name for one in nights[FROZEN][-1].noticed)
    told = [f"{value:.3f}" for value in mase.values()] + [noticed, nights[NIGHTLY][-1].told, nights[IF_NEEDED][-1].told]
    return f"| {mark}{night + 1}{mark} | {' | '.join(told)} |"


def picture(lived: Sequence[Lived]) -> Figure:
    """MASE by day under each change, and below it who noticed, was refused or promoted in which night."""
    figure = Figure(figsize=(10, 4.4 * len(lived)), dpi=110, layout="constrained")
    for axes, below, one in zip(*_halves(figure, len(lived)), lived, strict=True):
        days = np.arange(1, one.plan.nights + 1)
        for name, errors in one.errors.items():
            axes.plot(days, errors.mean(axis=1), label=name.replace("_", " "), **STYLES[name])
        axes.set_title(f"A change of {one.change.name} from day {one.plan.change + 1} on", loc="left", fontsize=11)
        axes.set_ylabel("MASE of the day")
        axes.legend(frameon=False, ncols=4, loc="upper right")
        axes.margins(y=0.2)
        rows = {f"{name.replace('_', ' ')}: {what}": (name, what) for name, what in _ROWS}
        for place, (name, what) in enumerate(rows.values()):
            nights = [night for night, each in zip(days, one.nights[name], strict=True) if _WHAT[what](each)]
            marker = {"promoted": "^", "refused": "x", "noticed": "s"}[what]
            below.scatter(nights, [-place] * len(nights), color=STYLES[name]["color"], marker=marker, s=34)
        below.set_yticks(range(0, -len(rows), -1), list(rows), fontsize=8)
        below.set_ylim(-len(rows) + 0.4, 0.6)
        below.set_xlabel("day, and the night before it")
        below.xaxis.set_major_locator(MultipleLocator(1))
        for each in (axes, below):
            each.axvline(one.plan.change + 0.5, color=BASELINE, linewidth=0.8, linestyle=":")
            each.grid(axis="y", color=GRID, linewidth=0.6)
            each.spines[["top", "right"]].set_visible(False)
            each.set_axisbelow(True)
        axes.tick_params(labelbottom=False)
    return figure


_ROWS = (
    (FROZEN, "noticed"),
    (NIGHTLY, "refused"),
    (NIGHTLY, "promoted"),
    (IF_NEEDED, "noticed"),
    (IF_NEEDED, "refused"),
    (IF_NEEDED, "promoted"),
)
_WHAT = {
    "noticed": lambda night: bool(night.noticed),
    "refused": lambda night: night.verdict is not None and not night.promoted,
    "promoted": lambda night: night.promoted,
}


def _halves(figure: Figure, changes: int) -> tuple[Sequence[Axes], Sequence[Axes]]:
    found = figure.subplots(2 * changes, 1, gridspec_kw={"height_ratios": [3, 1.2] * changes}, squeeze=False)[:, 0]
    for above, below in zip(found[::2], found[1::2], strict=True):
        below.sharex(above)
    return found[::2], found[1::2]


if __name__ == "__main__":
    main()
