"""Speed of a recurrence: torch's own modules, the compiled kernel and the backend in torch, alternating in every round.

    PYTHONPATH=. python benchmarks/speed/recurrence.py              about three minutes; writes benchmarks/results/recurrence.md
    PYTHONPATH=. python benchmarks/speed/recurrence.py --rounds 3   a quick look; no file is written

Needs only torch and numpy. A training step is forward, loss, backward and Adam, with nothing around it. A ratio is the median
over rounds of torch's time divided by ours in the same round, so that other load on the machine affects both.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from forecaster.model.recurrence import vectorized
from forecaster.model.recurrence.autograd import compute_layer
from forecaster.model.recurrence.compiled import load_compiled_backend
from forecaster.model.recurrence.layer import Backend, LayerInputs

RESULT = Path(__file__).parent.parent / "results" / "recurrence.md"
TORCH_MODULES = {"lstm": nn.LSTM, "gru": nn.GRU, "elman": nn.RNN}
MIN_SECONDS = 0.02  # least seconds of a measurement
MEMBER_COUNT = 5
TimedCall = Callable[[], object]


class NetworkSize(NamedTuple):
    """A network and its batch."""

    hidden: int
    layers: int
    context: int
    batch: int

    def __str__(self) -> str:
        return f"{self.hidden} x {self.layers}, context {self.context}, batch {self.batch}"


CLASSICAL_SIZE, LARGE_SIZE = NetworkSize(64, 1, 30, 50), NetworkSize(128, 2, 96, 128)


class BackendRecurrence(nn.Module):
    """The layers of one of torch's modules, computed by one of our backends."""

    def __init__(self, module: nn.RNNBase, cell: str, backend: Backend) -> None:
        super().__init__()
        self.module, self.cell, self.backend = module, cell, backend

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        """Computes the same as torch's module from a state of zeros; returns no state."""
        rows, steps = inputs.shape[:2]
        zero = inputs.new_zeros(rows, self.module.hidden_size)
        begun_mask = torch.ones(rows, steps, dtype=torch.bool)
        for number in range(self.module.num_layers):
            names = (f"{name}_l{number}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            weights = (getattr(self.module, name) for name in names)
            layer = LayerInputs(self.cell, inputs, zero, zero if self.cell == "lstm" else None, begun_mask, *weights)
            inputs = compute_layer(layer, backend=self.backend).outputs
        return inputs, None


class RecurrentRegression(nn.Module):
    """A recurrence and a linear output, with the mean squared error as its loss."""

    def __init__(self, recurrence: nn.Module, hidden: int) -> None:
        super().__init__()
        self.recurrence, self.output = recurrence, nn.Linear(hidden, 1)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss."""
        return (self.output(self.recurrence(inputs)[0]) - targets).square().mean()


def main() -> None:
    """Measures, prints and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds in every table; default: a suitable number per table"
    )
    rounds = parser.parse_args().rounds
    threads = os.cpu_count() or 1
    lines = [format_heading(threads)]
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        lines += ["", f"## {count} thread{'s' * (count > 1)}"]
        lines += measure_training(rounds or 41) + measure_members(rounds or 21) + measure_single_steps(rounds or 21)
    print("\n".join(lines))
    if not rounds:
        RESULT.write_text("\n".join([*lines, ""]))


def format_heading(threads: int) -> str:
    """Formats the heading with the machine and the versions."""
    backend = load_compiled_backend()
    kernel = "none" if backend is None else f"vectors of {backend.lanes} floats"
    return (
        "# The recurrence\n\n`PYTHONPATH=. python benchmarks/speed/recurrence.py`: torch "
        f"{torch.__version__}, float32, {cpu_model()}, {threads} cores; compiled kernel: {kernel}; load before the run "
        f"{os.getloadavg()[0]:.1f}. Medians; in brackets: speedup over torch's module (median over rounds)."
    )


def cpu_model() -> str:
    """Returns the model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


def list_backends() -> dict[str, Backend]:
    """Returns our backends: the kernel if it is compiled, and the one in torch."""
    compiled = load_compiled_backend()
    return ({} if compiled is None else {"kernel": compiled}) | {"vectorized": vectorized}


def measure_training(rounds: int) -> list[str]:
    """Measures milliseconds per training step."""
    table = TimingTable("Training step, ms", ["torch", *list_backends()])
    for size in (CLASSICAL_SIZE, LARGE_SIZE):
        for cell in TORCH_MODULES:
            calls = {"torch": training_step(make_network(cell, size), size)}
            calls |= {
                name: training_step(make_network(cell, size, backend), size)
                for name, backend in list_backends().items()
            }
            table.add(f"{cell.upper()} {size}", calls, rounds if size == CLASSICAL_SIZE else rounds // 3 + 1, unit=1e3)
    return table.lines


def measure_members(rounds: int) -> list[str]:
    """Measures five networks trained together, as a multiple of one."""
    name, backend = next(iter(list_backends().items()))
    table = TimingTable(
        f"{MEMBER_COUNT} members together, ms per step (in brackets: multiple of one; {name})", ["one", "members"]
    )
    for size in (NetworkSize(32, 1, 30, 32), CLASSICAL_SIZE, LARGE_SIZE._replace(layers=1)):
        for cell in ("lstm", "gru"):
            single_step = training_step(make_network(cell, size, backend), size)
            table.add(
                f"{cell.upper()} {size}",
                {"one": single_step, "members": stacked_training_step(cell, size, backend)},
                rounds,
                unit=1e3,
                as_multiple=True,
            )
    return table.lines


def measure_single_steps(rounds: int) -> list[str]:
    """Measures microseconds of a call with one step, without gradients."""
    table = TimingTable("One step of a rollout, µs", ["torch", *list_backends()])
    for size in (CLASSICAL_SIZE, LARGE_SIZE):
        for cell in ("lstm", "gru"):
            for rows in (1, 64, 1024):
                inputs = torch.randn(rows, 1, 2)
                modules = {"torch": make_recurrence(cell, size)}
                modules |= {name: make_recurrence(cell, size, backend) for name, backend in list_backends().items()}
                calls = {name: forward_pass(module, inputs) for name, module in modules.items()}
                table.add(f"{cell.upper()} {size.hidden} x {size.layers}, batch {rows}", calls, rounds, unit=1e6)
    return table.lines


class TimingTable:
    """Builds a table of timings."""

    def __init__(self, title: str, columns: Sequence[str]) -> None:
        self.lines = ["", f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]

    def add(
        self, label: str, calls: dict[str, TimedCall], rounds: int, *, unit: float, as_multiple: bool = False
    ) -> None:
        """Measures the calls and adds a row; the first call is the reference of the ratios."""
        seconds = time_interleaved(calls, rounds)
        first, *others = seconds
        cells = [f"{np.median(seconds[first]) * unit:.2f}"]
        for name in others:
            ratio = np.median(seconds[name] / seconds[first] if as_multiple else seconds[first] / seconds[name])
            cells.append(f"{np.median(seconds[name]) * unit:.2f} ({ratio:.2f})")
        self.lines.append(f"| {label} | {' | '.join(cells)} |")
        print(self.lines[-1], file=sys.stderr, flush=True)


def time_interleaved(calls: dict[str, TimedCall], rounds: int) -> dict[str, np.ndarray]:
    """Returns seconds per call, one entry per round."""
    repeats = {name: choose_repeats(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((time.perf_counter() - started) / repeats[name])
    return {name: np.array(values) for name, values in seconds.items()}


def choose_repeats(call: TimedCall) -> int:
    """Returns how many calls take long enough to be measured; also warms up."""
    call()
    started = time.perf_counter()
    call()
    return max(1, int(MIN_SECONDS / (time.perf_counter() - started)))


def make_recurrence(cell: str, size: NetworkSize, backend: Backend | None = None) -> nn.Module:
    """Returns torch's module, or the same computed by one of our backends."""
    torch.manual_seed(0)
    module = TORCH_MODULES[cell](2, size.hidden, size.layers, batch_first=True)
    return module if backend is None else BackendRecurrence(module, cell, backend)


def make_network(cell: str, size: NetworkSize, backend: Backend | None = None) -> RecurrentRegression:
    """Returns a network around the recurrence."""
    return RecurrentRegression(make_recurrence(cell, size, backend), size.hidden)


def make_data(size: NetworkSize, *leading_axes: int) -> tuple[Tensor, Tensor]:
    """Returns inputs and targets."""
    rng = torch.Generator().manual_seed(1)
    shape = (*leading_axes, size.batch, size.context)
    return torch.randn(*shape, 2, generator=rng), torch.randn(*shape, 1, generator=rng)


def training_step(network: RecurrentRegression, size: NetworkSize) -> TimedCall:
    """Returns a training step of one network."""
    inputs, targets = make_data(size)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step() -> None:
        optimiser.zero_grad()
        network(inputs, targets).backward()
        optimiser.step()

    return step


def stacked_training_step(cell: str, size: NetworkSize, backend: Backend) -> TimedCall:
    """Returns a training step of all members."""
    networks = [make_network(cell, size, backend) for _ in range(MEMBER_COUNT)]
    stacked, _ = stack_module_state(networks)
    weights = {name: weight.detach().requires_grad_() for name, weight in stacked.items()}
    inputs, targets = make_data(size, MEMBER_COUNT)
    optimiser = torch.optim.Adam(list(weights.values()), lr=1e-3)
    losses = vmap(lambda parameters, *batch: functional_call(networks[0], parameters, batch))

    def step() -> None:
        optimiser.zero_grad()
        losses(weights, inputs, targets).sum().backward()
        optimiser.step()

    return step


def forward_pass(module: nn.Module, inputs: Tensor) -> TimedCall:
    """Returns a forward pass."""

    def call() -> None:
        with torch.inference_mode():
            module(inputs)

    return call


if __name__ == "__main__":
    main()
