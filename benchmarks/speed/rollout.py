"""How fast is a rollout? Ours as one graph and in PyTorch, beside a bare loop in onnxruntime and nn.LSTM with its state carried.

    python benchmarks/speed/rollout.py               about two minutes on a free core
    python benchmarks/speed/rollout.py --threads 2   each engine on two

Every engine gets the same LSTM, context 96, and tells the same forecast. Ours takes float64 histories as they come, measures
their scale, minds gaps and explosions, and answers in units of the data; the others get scaled float32 without gaps and
answer scaled. Calls are interleaved, so that what else the machine does falls on all alike; medians are told, and ratios to
the bare loop. Writes benchmarks/results/rollout.md.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from forecaster.engines.engine import RolloutInput
from forecaster.engines.kernel_torch import build_torch_kernel_engine
from forecaster.engines.onnx.export import export_onnx
from forecaster.engines.onnx.runner import OnnxEngine
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.model.regressor import Regressor, build_network
from forecaster.spec import Spec

CONTEXT = 96
NETWORKS = [(64, 1), (128, 2)]  # hidden, layers
CASES = [(1, 24, 400), (1, 720, 40), (1024, 24, 12)]  # rows, steps, rounds
BARE_LOOP_NAME = "bare Loop in onnxruntime"
RESULT = Path(__file__).parent.parent / "results" / "rollout.md"


class BareWeights(NamedTuple):
    """The LSTM and its output, without what our network reads besides the values: always 1 here, so part of the bias."""

    weights: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # of inputs, of the state, bias; by layer, PyTorch's gates
    output: np.ndarray
    bias: np.ndarray

    @property
    def hidden_size(self) -> int:
        """Size of the state."""
        return self.output.shape[1]


def make_network(hidden: int, layers: int) -> Regressor:
    """Random weights of an ordinary size."""
    fields = {"network": {"cell": "lstm", "hidden": hidden, "layers": layers}, "scaling": "standard", "base": "zero"}
    spec = Spec.parse({"name": "speed", "context": CONTEXT, "horizon": 24} | fields, where="rollout.py")
    model = build_network(spec, seed=0).eval().requires_grad_(False)
    model.output.weight.mul_(4.0)
    return model


def extract_weights(model: Regressor) -> BareWeights:
    """What a bare engine needs of our network."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = []
    for number in range(len(model.recurrent.layers)):
        inputs, state, first, second = (
            weights[f"recurrent.layers.{number}.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        observed = inputs[:, 1] if number == 0 else 0.0
        found.append((inputs[:, :1] if number == 0 else inputs, state, first + second + observed))
    return BareWeights(found, weights["output.weight"], weights["output.bias"])


def make_onnx_loop(weights: BareWeights, threads: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """ONNX's LSTM over the context, then a Loop of output and LSTM: no more nodes than that takes."""
    constants, before, body = [], [], []
    states, loop_in, loop_out = [], [], []

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    constant("output", weights.output.T)
    constant("bias", weights.bias)
    constant("first", np.array([1]))
    constants.append(numpy_helper.from_array(np.array(True), "true"))
    top = f"hidden{len(weights.weights) - 1}"
    body.append(helper.make_node("MatMul", [top, "output"], ["raw"]))
    body.append(helper.make_node("Add", ["raw", "bias"], ["told"]))
    sequence, value = "values", "told"
    for number, (inputs, state, bias) in enumerate(weights.weights):
        order = np.arange(4 * weights.hidden_size).reshape(4, -1)[[0, 3, 1, 2]].ravel()
        names = [
            constant(f"w{number}", inputs[order][None]),
            constant(f"r{number}", state[order][None]),
            constant(f"b{number}", np.concatenate([bias[order], 0 * bias])[None]),
        ]
        ends = [f"start_h{number}", f"start_c{number}"]
        before.append(
            helper.make_node("LSTM", [sequence, *names], [f"y{number}", *ends], hidden_size=weights.hidden_size)
        )
        before.append(helper.make_node("Squeeze", [f"y{number}", "first"], [f"sequence{number}"]))
        carried, new = [f"hidden{number}", f"cell{number}"], [f"new_h{number}", f"new_c{number}"]
        body.append(
            helper.make_node("LSTM", [value, *names, "", *carried], ["", *new], hidden_size=weights.hidden_size)
        )
        sequence, value = f"sequence{number}", new[0]
        states, loop_in, loop_out = [*states, *ends], [*loop_in, *carried], [*loop_out, *new]
    body.append(helper.make_node("Identity", ["go"], ["on"]))
    body.append(helper.make_node("Identity", ["told"], ["kept"]))

    def info(name: str, kind: int = TensorProto.FLOAT, shape: list[str | int] | None = None) -> object:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        body,
        "body",
        [info("number", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), *map(info, loop_in)],
        [info("on", TensorProto.BOOL, []), *map(info, loop_out), info("kept")],
    )
    left = [f"left{place}" for place in range(len(states))]
    before.append(helper.make_node("Loop", ["steps", "true", *states], [*left, "forecast"], body=graph))
    whole = helper.make_graph(
        before,
        "bare",
        [info("values", shape=["step", "row", 1]), info("steps", TensorProto.INT64, [])],
        [info("forecast", shape=["step", 1, "row", 1])],
        constants,
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(scaled: np.ndarray, steps: int) -> np.ndarray:
        told = session.run(["forecast"], {"values": scaled, "steps": np.array(steps)})[0]
        return np.asarray(told[:, 0, :, 0].T)

    return run


def make_stepped_lstm(weights: BareWeights) -> Callable[[np.ndarray, int], np.ndarray]:
    """nn.LSTM over the context, then one call of it for each step."""
    recurrent = nn.LSTM(1, weights.hidden_size, len(weights.weights)).eval()
    output = nn.Linear(weights.hidden_size, 1)
    with torch.no_grad():
        for number, parts in enumerate((*weights.weights,)):
            for name, part in zip(("weight_ih", "weight_hh", "bias_ih"), parts, strict=True):
                getattr(recurrent, f"{name}_l{number}").copy_(torch.from_numpy(part))
            getattr(recurrent, f"bias_hh_l{number}").zero_()
        output.weight.copy_(torch.from_numpy(weights.output))
        output.bias.copy_(torch.from_numpy(weights.bias))

    def run(scaled: np.ndarray, steps: int) -> np.ndarray:
        told = []
        with torch.inference_mode():
            hidden, state = recurrent(torch.from_numpy(scaled))
            for _ in range(steps):
                told.append(output(hidden[-1:]))
                hidden, state = recurrent(told[-1], state)
            return torch.cat(told)[:, :, 0].T.numpy()

    return run


def measure_network(hidden: int, layers: int, *, threads: int) -> list[tuple[str, ...]]:
    """A line of the table for each case and engine."""
    model = make_network(hidden, layers)
    bare = extract_weights(model)
    runner, reference = OnnxEngine(export_onnx(model), threads=threads), PyTorchEngine(model)
    kernel = build_torch_kernel_engine(model, threads=threads)
    loop, carried = make_onnx_loop(bare, threads), make_stepped_lstm(bare)
    lines = []
    for rows, steps, rounds in CASES:
        values = 50 + np.random.default_rng(0).normal(size=(rows, CONTEXT)).cumsum(axis=1)
        level, spread = values.mean(1, keepdims=True), values.std(1, keepdims=True)
        scaled = np.ascontiguousarray(((values - level) / spread).astype(np.float32).T[:, :, None])
        known = RolloutInput(values)
        engines: dict[str, Callable[[], np.ndarray]] = {
            BARE_LOOP_NAME: lambda: loop(scaled, steps),  # noqa: B023 (called in this round alone)
            **({} if kernel is None else {"forecaster, kernel": lambda: kernel.roll_out(known, horizon=steps)}),  # noqa: B023
            "forecaster, graph": lambda: runner.roll_out(known, horizon=steps),  # noqa: B023
            "forecaster, PyTorch": lambda: reference.roll_out(known, horizon=steps),  # noqa: B023
            "nn.LSTM, state carried": lambda: carried(scaled, steps),  # noqa: B023
        }
        told = {name: engine() for name, engine in engines.items()}
        told |= {name: told[name] * spread + level for name in (BARE_LOOP_NAME, "nn.LSTM, state carried")}
        off = {
            name: np.abs(one - told["forecaster, PyTorch"]) / np.abs(values).max(1, keepdims=True)
            for name, one in told.items()
        }
        times = time_interleaved(engines, rounds)
        for name, seconds in times.items():
            ratio = np.median(seconds) / np.median(times[BARE_LOOP_NAME])
            shape = f"{hidden}x{layers}", f"{rows}", f"{steps}"
            lines.append((*shape, name, f"{1e3 * np.median(seconds):.3g}", f"{ratio:.2f}", f"{off[name].max():.0e}"))
            print(*lines[-1], sep="\t", flush=True)
    return lines


def time_interleaved(engines: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call: one of each engine, each round beginning with another."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            engines[name]()
            times[name].append(time.perf_counter() - began)
    return times


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    lines = [line for hidden, layers in NETWORKS for line in measure_network(hidden, layers, threads=threads)]
    head = (
        "| LSTM | rows | steps | engine | ms a call, median | to the bare loop | largest difference |\n|" + "---|" * 7
    )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}"
    command = f"`python benchmarks/speed/rollout.py --threads {threads}`"
    RESULT.write_text(
        f"# Speed of a rollout\n\n{command}, {versions}, CPU, {threads} thread{'s' * (threads > 1)}.\n\n"
        f"Context {CONTEXT}, random weights. Difference: to our rollout in PyTorch, in the largest value of the history. "
        f"Milliseconds depend on the machine and its load, ratios little.\n\n{head}\n{table}\n"
    )


if __name__ == "__main__":
    main()
