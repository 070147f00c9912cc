"""Speed of a rollout: our engines as a graph and in PyTorch, a bare loop in onnxruntime, and nn.LSTM with its state carried.

    python benchmarks/speed/rollout.py               about two minutes on a free core
    python benchmarks/speed/rollout.py --threads 2   two threads per engine

Every engine gets the same LSTM, context 96, and computes the same forecast. Ours takes float64 histories, measures their scale,
handles missing values and divergence, and returns the forecast in the units of the data. The others get scaled float32 values
without missing values and return scaled forecasts. Calls are interleaved, so that other load on the machine affects all engines
alike. Reports medians, and ratios to the bare loop. Writes benchmarks/results/rollout.md.
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
from forecaster.engines.kernel import build_kernel_engine
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
    """The LSTM and its output layer; our network's constant mask input (always 1 here) is folded into the bias."""

    weights: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # input, state and bias, by layer, with PyTorch's gates
    output: np.ndarray
    bias: np.ndarray

    @property
    def hidden_size(self) -> int:
        """Size of the state."""
        return self.output.shape[1]


def make_spec(hidden: int, layers: int) -> Spec:
    """Returns the specification of a network."""
    fields = {"network": {"cell": "lstm", "hidden": hidden, "layers": layers}, "scaling": "standard", "base": "zero"}
    return Spec.parse({"name": "speed", "context": CONTEXT, "horizon": 24} | fields, where="rollout.py")


def make_network(spec: Spec) -> Regressor:
    """Returns a network with random weights of a typical size."""
    model = build_network(spec, seed=0).eval().requires_grad_(False)
    model.output.weight.mul_(4.0)
    return model


def extract_weights(model: Regressor) -> BareWeights:
    """Extracts the weights that a bare engine needs from our network."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    layers = []
    for number in range(len(model.recurrent.layers)):
        inputs, state, first, second = (
            weights[f"recurrent.layers.{number}.{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        observed = inputs[:, 1] if number == 0 else 0.0
        layers.append((inputs[:, :1] if number == 0 else inputs, state, first + second + observed))
    return BareWeights(layers, weights["output.weight"], weights["output.bias"])


def make_onnx_loop(weights: BareWeights, threads: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Builds ONNX's LSTM over the context and a Loop of output and LSTM, with the least number of nodes."""
    constants, nodes, body = [], [], []
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
    body.append(helper.make_node("Add", ["raw", "bias"], ["output_value"]))
    sequence, value = "values", "output_value"
    for number, (inputs, state, bias) in enumerate(weights.weights):
        order = np.arange(4 * weights.hidden_size).reshape(4, -1)[[0, 3, 1, 2]].ravel()
        names = [
            constant(f"w{number}", inputs[order][None]),
            constant(f"r{number}", state[order][None]),
            constant(f"b{number}", np.concatenate([bias[order], 0 * bias])[None]),
        ]
        ends = [f"start_h{number}", f"start_c{number}"]
        nodes.append(
            helper.make_node("LSTM", [sequence, *names], [f"y{number}", *ends], hidden_size=weights.hidden_size)
        )
        nodes.append(helper.make_node("Squeeze", [f"y{number}", "first"], [f"sequence{number}"]))
        carried, new = [f"hidden{number}", f"cell{number}"], [f"new_h{number}", f"new_c{number}"]
        body.append(
            helper.make_node("LSTM", [value, *names, "", *carried], ["", *new], hidden_size=weights.hidden_size)
        )
        sequence, value = f"sequence{number}", new[0]
        states, loop_in, loop_out = [*states, *ends], [*loop_in, *carried], [*loop_out, *new]
    body.append(helper.make_node("Identity", ["go"], ["on"]))
    body.append(helper.make_node("Identity", ["output_value"], ["forecast_step"]))

    def info(name: str, kind: int = TensorProto.FLOAT, shape: list[str | int] | None = None) -> object:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        body,
        "body",
        [info("number", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), *map(info, loop_in)],
        [info("on", TensorProto.BOOL, []), *map(info, loop_out), info("forecast_step")],
    )
    leftover_names = [f"left{index}" for index in range(len(states))]
    nodes.append(helper.make_node("Loop", ["steps", "true", *states], [*leftover_names, "forecast"], body=graph))
    full_graph = helper.make_graph(
        nodes,
        "bare",
        [info("values", shape=["step", "row", 1]), info("steps", TensorProto.INT64, [])],
        [info("forecast", shape=["step", 1, "row", 1])],
        constants,
    )
    model = helper.make_model(full_graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(scaled: np.ndarray, steps: int) -> np.ndarray:
        forecast = session.run(["forecast"], {"values": scaled, "steps": np.array(steps)})[0]
        return np.asarray(forecast[:, 0, :, 0].T)

    return run


def make_stepped_lstm(weights: BareWeights) -> Callable[[np.ndarray, int], np.ndarray]:
    """Builds nn.LSTM over the context, then one call of it per step."""
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
        outputs = []
        with torch.inference_mode():
            hidden, state = recurrent(torch.from_numpy(scaled))
            for _ in range(steps):
                outputs.append(output(hidden[-1:]))
                hidden, state = recurrent(outputs[-1], state)
            return torch.cat(outputs)[:, :, 0].T.numpy()

    return run


def measure_network(hidden: int, layers: int, *, threads: int) -> list[tuple[str, ...]]:
    """Returns a row of the table for each case and engine."""
    spec = make_spec(hidden, layers)
    model = make_network(spec)
    weights = extract_weights(model)
    graph_engine, torch_engine = OnnxEngine(export_onnx(model), threads=threads), PyTorchEngine(model)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    kernel_engine = build_kernel_engine(spec, arrays, season=1, num_features=0, threads=threads)
    run_loop, run_stepped = make_onnx_loop(weights, threads), make_stepped_lstm(weights)
    lines = []
    for rows, steps, rounds in CASES:
        values = 50 + np.random.default_rng(0).normal(size=(rows, CONTEXT)).cumsum(axis=1)
        level, spread = values.mean(1, keepdims=True), values.std(1, keepdims=True)
        scaled = np.ascontiguousarray(((values - level) / spread).astype(np.float32).T[:, :, None])
        rollout_input = RolloutInput(values)
        engines: dict[str, Callable[[], np.ndarray]] = {
            BARE_LOOP_NAME: lambda: run_loop(scaled, steps),  # noqa: B023 (called in this iteration only)
        }
        if kernel_engine is not None:
            engines["forecaster, kernel"] = lambda: kernel_engine.roll_out(rollout_input, horizon=steps)  # noqa: B023
        engines |= {
            "forecaster, graph": lambda: graph_engine.roll_out(rollout_input, horizon=steps),  # noqa: B023
            "forecaster, PyTorch": lambda: torch_engine.roll_out(rollout_input, horizon=steps),  # noqa: B023
            "nn.LSTM, state carried": lambda: run_stepped(scaled, steps),  # noqa: B023
        }
        forecasts = {name: engine() for name, engine in engines.items()}
        forecasts |= {name: forecasts[name] * spread + level for name in (BARE_LOOP_NAME, "nn.LSTM, state carried")}
        differences = {
            name: np.abs(forecast - forecasts["forecaster, PyTorch"]) / np.abs(values).max(1, keepdims=True)
            for name, forecast in forecasts.items()
        }
        times = time_interleaved(engines, rounds)
        for name, seconds in times.items():
            ratio = np.median(seconds) / np.median(times[BARE_LOOP_NAME])
            shape = f"{hidden}x{layers}", f"{rows}", f"{steps}"
            lines.append(
                (*shape, name, f"{1e3 * np.median(seconds):.3g}", f"{ratio:.2f}", f"{differences[name].max():.0e}")
            )
            print(*lines[-1], sep="\t", flush=True)
    return lines


def time_interleaved(engines: dict[str, Callable[[], np.ndarray]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of every call; each round calls every engine once and starts with another engine."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            engines[name]()
            times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    """Measures, prints and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    lines = [line for hidden, layers in NETWORKS for line in measure_network(hidden, layers, threads=threads)]
    header = (
        "| LSTM | rows | steps | engine | ms per call, median | ratio to the bare loop | largest difference |\n|"
        + "---|" * 7
    )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}"
    command = f"`python benchmarks/speed/rollout.py --threads {threads}`"
    RESULT.write_text(
        f"# Speed of a rollout\n\n{command}, {versions}, CPU, {threads} thread{'s' * (threads > 1)}.\n\n"
        f"Context {CONTEXT}, random weights. Difference: to our rollout in PyTorch, relative to the largest value of the "
        f"history. Milliseconds depend on the machine and its load, ratios hardly.\n\n{header}\n{table}\n"
    )


if __name__ == "__main__":
    main()
