"""Where the time of a training step goes: a bare PyTorch loop, ours around the network, Lightning around that, all of a training.

    python benchmarks/speed/loop.py                five rounds of 1000 steps each way, some minutes on a free core
    python benchmarks/speed/loop.py --threads 2

The classical case: an LSTM of 64, windows of 30 steps, batches of 50, Adam. Every round runs all ways one after the other;
ratios are taken within rounds, so that company on the machine weighs on both sides. Writes benchmarks/results/loop.md.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from timing import Timing, time_once
from torch import Tensor, nn

from forecaster.data.frames.panel import to_panel
from forecaster.data.windows import CutoffIndex, EpochBatches, PanelTensor
from forecaster.model.regressor import Regressor, build_network
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training.datamodule import STEPS_PER_CHUNK
from forecaster.training.fit import fit
from forecaster.training.loss import compute_loss, prepare_batches, teacher_forced_loss
from forecaster.training.optimizer import FusedAdam, clip_gradient_norm, run_optimizer_steps
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import train

RESULTS = Path(__file__).parent.parent / "results" / "loop.md"
CONTEXT, BATCH, HIDDEN, LEARNING_RATE, CLIP = 30, 50, 64, 1e-3, 1.0
SHORT_STEPS = 50  # steps, to tell what a training costs besides its steps


class LoopVariant(NamedTuple):
    """A way to make some steps."""

    name: str
    run: Callable[[int], None]


def main() -> None:
    """Runs all, prints it and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args()
    for name in ("pytorch_lightning", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        table = make_frame()
        table.to_csv(Path(folder) / "waves.csv", index=False)
        ways = list(loop_variants(to_panel(table), Path(folder)))
        for way in ways:
            way.run(SHORT_STEPS)  # imports, the database, caches
        whole: dict[str, list[Timing]] = defaultdict(list)
        short: dict[str, list[Timing]] = defaultdict(list)
        for _ in range(options.rounds):
            for way in ways:
                short[way.name].append(time_once(partial(way.run, SHORT_STEPS)))
                whole[way.name].append(time_once(partial(way.run, options.steps)))
        parts = time_step_parts(to_panel(table), options.steps)
    text = format_report([way.name for way in ways], whole, short, parts, options)
    RESULTS.write_text(text)
    print(text)


def make_frame() -> pd.DataFrame:
    """A noisy daily rhythm by the hour."""
    clock, draw = np.arange(2000), np.random.default_rng(0)
    y = np.sin(2 * np.pi * clock / 24) + 0.1 * draw.normal(size=len(clock))
    return pd.DataFrame({"unique_id": "wave", "ds": pd.date_range("2026-01-01", periods=len(clock), freq="h"), "y": y})


def classical_spec(steps: int, **training: Any) -> Spec:
    """The case, of so many steps."""
    return Spec.parse(
        {
            "name": "classical",
            "context": CONTEXT,
            "horizon": 10,
            "network": {"cell": "lstm", "hidden": HIDDEN},
            "training": {"steps": steps, "batch": BATCH, "learning_rate": LEARNING_RATE, "gradient_clip": CLIP}
            | training,
        },
        where="the benchmark",
    )


def loop_variants(panel: Panel, folder: Path) -> Iterator[LoopVariant]:
    """From the bare loop to a whole training."""
    yield LoopVariant("bare loop: `nn.LSTM`, `nn.Linear`, `Adam`", partial(run_bare_loop, panel))
    yield LoopVariant("the same, gradients clipped", partial(run_bare_loop, panel, clip=True))
    yield LoopVariant("our network and loss, batch by batch, in that loop", partial(run_naive_loop, panel))
    yield LoopVariant(f"our steps, {STEPS_PER_CHUNK} prepared at once", partial(run_our_loop, panel))
    yield LoopVariant("`fit`: Lightning around them", lambda steps: _fit(panel, classical_spec(steps, valid_windows=0)))
    yield LoopVariant("`fit` as trained: validated, a checkpoint each 50 steps", partial(run_fit, panel, folder))
    yield LoopVariant("`train`: tracked by MLflow, calibrated, tested, bundled", partial(run_train_command, folder))


def run_bare_loop(panel: Panel, steps: int, *, clip: bool = False) -> None:
    """What anyone would write first."""
    values = torch.tensor(panel.series[0].y, dtype=torch.float32)
    network = _BareNetwork()
    optimizer, loss, window = (
        torch.optim.Adam(network.parameters(), lr=LEARNING_RATE),
        nn.MSELoss(),
        torch.arange(CONTEXT + 1),
    )
    for _ in range(steps):
        windows = values[torch.randint(len(values) - CONTEXT, (BATCH, 1)) + window]
        optimizer.zero_grad()
        loss(network(windows[:, :-1, None]), windows[:, 1:]).backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()


class _BareNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(1, HIDDEN, batch_first=True)
        self.output = nn.Linear(HIDDEN, 1)

    def forward(self, values: Tensor) -> Tensor:
        found: Tensor = self.output(self.recurrent(values)[0])[..., 0]
        return found


def run_naive_loop(panel: Panel, steps: int) -> None:
    """Every batch prepared, and clipped and stepped with torch's defaults."""
    network, feed = _network_and_feed(panel, steps, at_once=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for example in feed:
        optimizer.zero_grad()
        teacher_forced_loss(network, example).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()


def run_our_loop(panel: Panel, steps: int) -> None:
    """As `TrainingModule.training_step` does, without Lightning."""
    network, feed = _network_and_feed(panel, steps, at_once=STEPS_PER_CHUNK)
    optimizer = FusedAdam(network.parameters(), learning_rate=LEARNING_RATE)
    for example in feed:
        prepared = prepare_batches(network, example, batch_size=BATCH)
        run_optimizer_steps(
            optimizer, partial(compute_loss, network), prepared, partial(clip_gradient_norm, max_norm=CLIP)
        )


def run_fit(panel: Panel, folder: Path, steps: int) -> None:
    """With validation and checkpoints, from the start."""
    checkpoint = folder / "fit.ckpt"
    checkpoint.unlink(missing_ok=True)
    _fit(panel, classical_spec(steps), checkpoint=checkpoint)


def run_train_command(folder: Path, steps: int) -> None:
    """What `forecaster train` does once it is imported."""
    train(DataSource(str(folder / "waves.csv")), classical_spec(steps), Root(folder))


def _fit(panel: Panel, spec: Spec, *, checkpoint: Path | None = None) -> None:
    fit(panel, spec, checkpoint=checkpoint, accelerator="cpu")


def _network_and_feed(panel: Panel, steps: int, *, at_once: int) -> tuple[Regressor, EpochBatches]:
    network = build_network(classical_spec(steps), seed=0)
    anchors = CutoffIndex.from_panel_tensor(
        PanelTensor.from_series(panel.series, context=CONTEXT, horizon=network.block), min_history=CONTEXT
    )
    return network, EpochBatches(
        anchors, CONTEXT, network.block, BATCH, steps, seed=0, epoch=0, batches_per_chunk=at_once
    )


class PartTimer:
    """Sums CPU time by part."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds what the block takes."""
        began = time.process_time()
        yield
        self.parts[part] += time.process_time() - began


def time_step_parts(panel: Panel, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds of CPU of each part of a step: of the bare loop, and of ours."""
    network, feed = _network_and_feed(panel, steps, at_once=STEPS_PER_CHUNK)
    optimizer, mine = FusedAdam(network.parameters(), learning_rate=LEARNING_RATE), PartTimer()
    batches = iter(feed)
    for _ in range(len(feed)):
        with mine("windows"):
            example = next(batches)
        with mine("preparing"):
            prepared = prepare_batches(network, example, batch_size=BATCH)
        for lesson in prepared:
            with mine("forward"):
                loss = compute_loss(network, lesson)
            with mine("backward"):
                gradients = list(torch.autograd.grad(loss, optimizer.trained_parameters, materialize_grads=True))
            with mine("clipping"):
                clip_gradient_norm(gradients, max_norm=CLIP)
            with mine("optimiser"):
                optimizer.apply_gradients(gradients)
    other, plain = PartTimer(), _BareNetwork()
    adam = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE)
    values, window = torch.tensor(panel.series[0].y, dtype=torch.float32), torch.arange(CONTEXT + 1)
    for _ in range(steps):
        with other("windows"):
            windows = values[torch.randint(len(values) - CONTEXT, (BATCH, 1)) + window]
        adam.zero_grad()
        with other("forward"):
            loss = nn.functional.mse_loss(plain(windows[:, :-1, None]), windows[:, 1:])
        with other("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with other("clipping"):
            nn.utils.clip_grad_norm_(plain.parameters(), CLIP)
        with other("optimiser"):
            adam.step()
    return {
        name: {part: 1000 * spent / steps for part, spent in clock.parts.items()}
        for name, clock in (("bare, clipped", other), ("ours", mine))
    }


def format_report(
    variants: list[str],
    full: dict[str, list[Timing]],
    short: dict[str, list[Timing]],
    parts: dict[str, dict[str, float]],
    options: argparse.Namespace,
) -> str:
    """The tables."""
    steps = options.steps

    def per_thousand(name: str) -> np.ndarray:
        """Of the steps alone, what comes before and after them taken off; CPU."""
        return np.array(
            [
                (long.cpu - brief.cpu) / (steps - SHORT_STEPS)
                for long, brief in zip(full[name], short[name], strict=True)
            ]
        )

    lines = [
        "# Where the time of a training step goes",
        "",
        f"`python benchmarks/speed/loop.py --steps {steps} --rounds {options.rounds} --threads {options.threads}`: LSTM "
        f"{HIDDEN} x 1, context {CONTEXT}, batch {BATCH}, torch {torch.__version__}, CPU. Medians over rounds; ratios to the "
        f"bare loop of the same round. CPU time is that of all threads of the process; the last two columns leave out what comes "
        f"before and after the steps (a run of {SHORT_STEPS} steps is taken off).",
        "",
        f"| | {steps} steps, s | CPU s | ratio | CPU ms a step | ratio |",
        "|---|---|---|---|---|---|",
    ]
    first = variants[0]
    for name in variants:
        wall, cpu = (np.array([getattr(one, field) for one in full[name]]) for field in ("seconds", "cpu"))
        ratio = np.median(cpu / [one.cpu for one in full[first]])
        alone = per_thousand(name)
        lines.append(
            f"| {name} | {np.median(wall):.2f} | {np.median(cpu):.2f} | {ratio:.2f} | {1000 * np.median(alone):.2f} | "
            f"{np.median(alone / per_thousand(first)):.2f} |"
        )
    lines += ["", "Parts of a step, CPU ms:", "", "| | " + " | ".join(_PARTS) + " |", "|---" * (len(_PARTS) + 1) + "|"]
    for name, spent in parts.items():
        lines.append(f"| {name} | " + " | ".join(f"{spent.get(part, 0.0):.3f}" for part in _PARTS) + " |")
    return "\n".join([*lines, ""])


_PARTS = ("windows", "preparing", "forward", "backward", "clipping", "optimiser")


if __name__ == "__main__":
    sys.exit(main())
