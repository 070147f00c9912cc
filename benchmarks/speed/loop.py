"""Where the time of a training step goes: a bare PyTorch loop, our network and steps, Lightning, and a whole training.

    python benchmarks/speed/loop.py                five rounds of 1000 steps per variant, some minutes on a free core
    python benchmarks/speed/loop.py --threads 2

The classical case: an LSTM of 64, windows of 30 steps, batches of 50, Adam. Each round runs all variants one after the other.
Ratios are computed within rounds, so that the load of the machine affects both sides. Writes benchmarks/results/loop.md.
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
SHORT_STEPS = 50  # steps of the short training that measures the costs besides the steps


class LoopVariant(NamedTuple):
    """A way to run a number of training steps."""

    name: str
    run: Callable[[int], None]


def main() -> None:
    """Measures all variants, prints the report and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    for name in ("pytorch_lightning", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        frame = make_frame()
        frame.to_csv(Path(folder) / "waves.csv", index=False)
        variants = list(loop_variants(to_panel(frame), Path(folder)))
        for variant in variants:
            variant.run(SHORT_STEPS)  # warm-up: imports, the database, caches
        full_timings: dict[str, list[Timing]] = defaultdict(list)
        short_timings: dict[str, list[Timing]] = defaultdict(list)
        for _ in range(options.rounds):
            for variant in variants:
                short_timings[variant.name].append(time_once(partial(variant.run, SHORT_STEPS)))
                full_timings[variant.name].append(time_once(partial(variant.run, options.steps)))
        parts = time_step_parts(to_panel(frame), options.steps)
    text = format_report([variant.name for variant in variants], full_timings, short_timings, parts, options)
    RESULTS.write_text(text)
    print(text)


def make_frame() -> pd.DataFrame:
    """Returns hourly values with a noisy daily cycle."""
    clock, rng = np.arange(2000), np.random.default_rng(0)
    y = np.sin(2 * np.pi * clock / 24) + 0.1 * rng.normal(size=len(clock))
    return pd.DataFrame({"unique_id": "wave", "ds": pd.date_range("2026-01-01", periods=len(clock), freq="h"), "y": y})


def classical_spec(steps: int, **training: Any) -> Spec:
    """Returns the specification of the case with the given number of steps."""
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
    """Yields the variants, from the bare loop to a whole training."""
    yield LoopVariant("bare loop: `nn.LSTM`, `nn.Linear`, `Adam`", partial(run_bare_loop, panel))
    yield LoopVariant("the same, gradients clipped", partial(run_bare_loop, panel, clip=True))
    yield LoopVariant("our network and loss, batch by batch, in that loop", partial(run_naive_loop, panel))
    yield LoopVariant(f"our steps, {STEPS_PER_CHUNK} prepared at once", partial(run_our_loop, panel))
    yield LoopVariant("`fit`: Lightning around them", lambda steps: _fit(panel, classical_spec(steps, valid_windows=0)))
    yield LoopVariant("`fit` with validation and a checkpoint every 50 steps", partial(run_fit, panel, folder))
    yield LoopVariant("`train`: tracked by MLflow, calibrated, tested, bundled", partial(run_train_command, folder))


def run_bare_loop(panel: Panel, steps: int, *, clip: bool = False) -> None:
    """Trains with a minimal PyTorch loop."""
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
        outputs: Tensor = self.output(self.recurrent(values)[0])[..., 0]
        return outputs


def run_naive_loop(panel: Panel, steps: int) -> None:
    """Trains our network batch by batch, with torch's default clipping and optimiser."""
    network, feed = _network_and_feed(panel, steps, at_once=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for example in feed:
        optimizer.zero_grad()
        teacher_forced_loss(network, example).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()


def run_our_loop(panel: Panel, steps: int) -> None:
    """Trains as `TrainingModule.training_step` does, without Lightning."""
    network, feed = _network_and_feed(panel, steps, at_once=STEPS_PER_CHUNK)
    optimizer = FusedAdam(network.parameters(), learning_rate=LEARNING_RATE)
    for example in feed:
        prepared = prepare_batches(network, example, batch_size=BATCH)
        run_optimizer_steps(
            optimizer, partial(compute_loss, network), prepared, partial(clip_gradient_norm, max_norm=CLIP)
        )


def run_fit(panel: Panel, folder: Path, steps: int) -> None:
    """Runs a fit with validation and checkpoints, from the start."""
    checkpoint = folder / "fit.ckpt"
    checkpoint.unlink(missing_ok=True)
    _fit(panel, classical_spec(steps), checkpoint=checkpoint)


def run_train_command(folder: Path, steps: int) -> None:
    """Runs what `forecaster train` does after its imports."""
    train(DataSource(str(folder / "waves.csv")), classical_spec(steps), Root(folder))


def _fit(panel: Panel, spec: Spec, *, checkpoint: Path | None = None) -> None:
    fit(panel, spec, checkpoint=checkpoint, accelerator="cpu")


def _network_and_feed(panel: Panel, steps: int, *, at_once: int) -> tuple[Regressor, EpochBatches]:
    network = build_network(classical_spec(steps), seed=0)
    anchors = CutoffIndex.from_source(
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
        """Adds the CPU time of the block."""
        started = time.process_time()
        yield
        self.parts[part] += time.process_time() - started


def time_step_parts(panel: Panel, steps: int) -> dict[str, dict[str, float]]:
    """Returns the CPU milliseconds of each part of a step, for the bare loop and for ours."""
    network, feed = _network_and_feed(panel, steps, at_once=STEPS_PER_CHUNK)
    optimizer, our_timer = FusedAdam(network.parameters(), learning_rate=LEARNING_RATE), PartTimer()
    batches = iter(feed)
    for _ in range(len(feed)):
        with our_timer("windows"):
            example = next(batches)
        with our_timer("preparing"):
            prepared = prepare_batches(network, example, batch_size=BATCH)
        for batch in prepared:
            with our_timer("forward"):
                loss = compute_loss(network, batch)
            with our_timer("backward"):
                gradients = list(torch.autograd.grad(loss, optimizer.trained_parameters, materialize_grads=True))
            with our_timer("clipping"):
                clip_gradient_norm(gradients, max_norm=CLIP)
            with our_timer("optimiser"):
                optimizer.apply_gradients(gradients)
    bare_timer, bare_network = PartTimer(), _BareNetwork()
    adam = torch.optim.Adam(bare_network.parameters(), lr=LEARNING_RATE)
    values, window = torch.tensor(panel.series[0].y, dtype=torch.float32), torch.arange(CONTEXT + 1)
    for _ in range(steps):
        with bare_timer("windows"):
            windows = values[torch.randint(len(values) - CONTEXT, (BATCH, 1)) + window]
        adam.zero_grad()
        with bare_timer("forward"):
            loss = nn.functional.mse_loss(bare_network(windows[:, :-1, None]), windows[:, 1:])
        with bare_timer("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with bare_timer("clipping"):
            nn.utils.clip_grad_norm_(bare_network.parameters(), CLIP)
        with bare_timer("optimiser"):
            adam.step()
    return {
        name: {part: 1000 * seconds / steps for part, seconds in timer.parts.items()}
        for name, timer in (("bare, clipped", bare_timer), ("ours", our_timer))
    }


def format_report(
    variants: list[str],
    full: dict[str, list[Timing]],
    short: dict[str, list[Timing]],
    parts: dict[str, dict[str, float]],
    options: argparse.Namespace,
) -> str:
    """Formats the tables."""
    steps = options.steps

    def seconds_per_step(name: str) -> np.ndarray:
        """Returns the CPU time of a step, without the time before and after the steps."""
        return np.array(
            [
                (full_timing.cpu - short_timing.cpu) / (steps - SHORT_STEPS)
                for full_timing, short_timing in zip(full[name], short[name], strict=True)
            ]
        )

    lines = [
        "# Where the time of a training step goes",
        "",
        f"`python benchmarks/speed/loop.py --steps {steps} --rounds {options.rounds} --threads {options.threads}`: LSTM "
        f"{HIDDEN} x 1, context {CONTEXT}, batch {BATCH}, torch {torch.__version__}, CPU. Medians over rounds; ratios to the "
        f"bare loop of the same round. CPU time is that of all threads of the process; the last two columns exclude the time "
        f"before and after the steps (a run of {SHORT_STEPS} steps is subtracted).",
        "",
        f"| | {steps} steps, s | CPU s | ratio | CPU ms per step | ratio |",
        "|---|---|---|---|---|---|",
    ]
    first = variants[0]
    for name in variants:
        wall, cpu = (np.array([getattr(timing, field) for timing in full[name]]) for field in ("seconds", "cpu"))
        ratio = np.median(cpu / [timing.cpu for timing in full[first]])
        step_seconds = seconds_per_step(name)
        lines.append(
            f"| {name} | {np.median(wall):.2f} | {np.median(cpu):.2f} | {ratio:.2f} | {1000 * np.median(step_seconds):.2f} | "
            f"{np.median(step_seconds / seconds_per_step(first)):.2f} |"
        )
    lines += ["", "Parts of a step, CPU ms:", "", "| | " + " | ".join(_PARTS) + " |", "|---" * (len(_PARTS) + 1) + "|"]
    for name, part_ms in parts.items():
        lines.append(f"| {name} | " + " | ".join(f"{part_ms.get(part, 0.0):.3f}" for part in _PARTS) + " |")
    return "\n".join([*lines, ""])


_PARTS = ("windows", "preparing", "forward", "backward", "clipping", "optimiser")


if __name__ == "__main__":
    sys.exit(main())
