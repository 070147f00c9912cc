"""Entrants without a library: a hand-written PyTorch loop, nn.LSTM stepped with its state, and one ONNX graph."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch
from cases import SpeedCase, make_histories, make_values
from onnx import TensorProto, helper
from runner_loop import EntrantNotAvailable, PreparedEntrant, serve_requests
from torch import Tensor, nn

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class BareNetwork(nn.Module):
    """A recurrence and a linear output that predicts the next value after every step."""

    def __init__(self, case: SpeedCase) -> None:
        super().__init__()
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[case.cell]
        self.recurrent = kind(1, case.hidden, case.layers, batch_first=True)
        self.output = nn.Linear(case.hidden, 1)

    def forward(self, inputs: Tensor, state: object = None) -> tuple[Tensor, object]:
        """Returns the next values, "row step 1", and the state."""
        outputs, state = self.recurrent(inputs, state)
        return self.output(outputs), state


def prepare_loop(case: SpeedCase) -> PreparedEntrant:
    """Prepares training with mean squared error and Adam on windows shifted by one step, cut by index from one tensor."""
    panel = torch.from_numpy(make_values(case)).float()
    span = torch.arange(case.context + 1)

    def train(steps: int) -> None:
        torch.manual_seed(0)
        network = BareNetwork(case)
        optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(steps):
            rows = torch.randint(len(panel), (case.batch, 1))
            starts = torch.randint(panel.shape[1] - case.context, (case.batch, 1))
            windows = panel[rows, starts + span][..., None]
            loss = nn.functional.mse_loss(network(windows[:, :-1])[0], windows[:, 1:])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    computes = "mean squared error at every step; no clipping, validation, checkpoint or log"
    return PreparedEntrant(train, {"parameters": count_parameters(BareNetwork(case)), "computes": computes})


def prepare_stepped_lstm(case: SpeedCase) -> PreparedEntrant:
    """Prepares a rollout that reads the history once, then steps with the state."""
    network, history = BareNetwork(case).eval(), torch.from_numpy(make_histories(case)).float()[..., None]

    @torch.inference_mode()
    def run_rollout(_: int) -> np.ndarray:
        outputs, state = network(history)
        step_output = outputs[:, -1:]
        steps = [step_output]
        for _ in range(case.horizon - 1):
            step_output, state = network(step_output, state)
            steps.append(step_output)
        return np.asarray(torch.cat(steps, dim=1)[..., 0].numpy())

    assert run_rollout(0).shape == (case.series, case.horizon)
    return PreparedEntrant(run_rollout, {"parameters": count_parameters(network), "computes": "raw values, one path"})


def prepare_onnx(case: SpeedCase) -> PreparedEntrant:
    """Prepares the same network as one ONNX graph: an LSTM over the history, and one Loop over the horizon."""
    if case.cell != "lstm":
        raise EntrantNotAvailable("the graph is written for the LSTM")
    network, history = BareNetwork(case).eval(), make_histories(case).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        build_onnx_graph(network, case).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run_session(_: int) -> np.ndarray:
        return np.asarray(session.run(None, {"history": history})[0])

    difference = float(np.abs(run_session(0) - roll_out(network, history, case.horizon)).max())
    assert difference < 1e-4, f"the graph differs by {difference}"
    return PreparedEntrant(
        run_session,
        {"parameters": count_parameters(network), "computes": "raw values, one path; the same as nn.LSTM to 1e-4"},
    )


def roll_out(network: BareNetwork, history: np.ndarray, horizon: int) -> np.ndarray:
    """Returns the step-by-step forecast of the network, to validate the graph."""
    with torch.inference_mode():
        outputs, state = network(torch.from_numpy(history)[..., None])
        steps = [outputs[:, -1:]]
        for _ in range(horizon - 1):
            outputs, state = network(steps[-1], state)
            steps.append(outputs)
        return np.asarray(torch.cat(steps, dim=1)[..., 0].numpy())


def build_onnx_graph(network: BareNetwork, case: SpeedCase) -> onnx.ModelProto:
    """Builds the graph from history "row step" to forecast "row horizon". ONNX orders gates i o f c, torch i f c o."""
    constants, layers = [], range(case.layers)

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(onnx.numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def reordered(tensor: Tensor) -> np.ndarray:
        i, f, c, o = np.split(tensor.detach().numpy(), 4)
        return np.concatenate([i, o, f, c])[None]

    for layer in layers:
        weights = {name: getattr(network.recurrent, f"{name}_l{layer}") for name in _WEIGHTS}
        constant(f"w{layer}", reordered(weights["weight_ih"]))
        constant(f"r{layer}", reordered(weights["weight_hh"]))
        biases = [reordered(weights["bias_ih"]), reordered(weights["bias_hh"])]
        constant(f"b{layer}", np.concatenate(biases, axis=1))
    constant("v", network.output.weight.detach().numpy().T)
    constant("v0", network.output.bias.detach().numpy())
    constant("first", np.array([0], dtype=np.int64))
    constant("unit", np.array([1], dtype=np.int64))
    constant("last", np.array([2], dtype=np.int64))
    constant("steps", np.array(case.horizon - 1, dtype=np.int64))
    constant("yes", np.array(True))

    def stack(start: str, prefix: str, states: bool) -> list[onnx.NodeProto]:
        """Returns the layers over the steps of `start`, "step row feature"; their states are named {prefix}h and {prefix}c."""
        nodes, layer_input = [], start
        for layer in layers:
            initial_states = [f"h{layer}_in", f"c{layer}_in"] if states else []
            nodes.append(
                helper.make_node(
                    "LSTM",
                    [layer_input, f"w{layer}", f"r{layer}", f"b{layer}", *([""] if states else []), *initial_states],
                    [f"{prefix}y{layer}", f"{prefix}h{layer}", f"{prefix}c{layer}"],
                    hidden_size=case.hidden,
                )
            )
            nodes.append(helper.make_node("Squeeze", [f"{prefix}y{layer}", "unit"], [f"{prefix}o{layer}"]))
            layer_input = f"{prefix}o{layer}"
        top = f"{prefix}h{layers[-1]}"
        nodes.append(helper.make_node("Squeeze", [top, "first"], [f"{prefix}top"]))
        nodes.append(helper.make_node("MatMul", [f"{prefix}top", "v"], [f"{prefix}projected"]))
        nodes.append(helper.make_node("Add", [f"{prefix}projected", "v0"], [f"{prefix}next"]))  # "row 1"
        return nodes

    float_ = TensorProto.FLOAT
    names = [f"{part}{layer}" for layer in layers for part in ("h", "c")]
    body = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["fed", "first"], ["input"]),
            *stack("input", "s_", states=True),
            helper.make_node("Identity", ["go"], ["continue"]),
            helper.make_node("Identity", ["s_next"], ["scanned"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("fed", float_, [None, 1]),
            *(helper.make_tensor_value_info(f"{name}_in", float_, [1, None, case.hidden]) for name in names),
        ],
        [
            helper.make_tensor_value_info("continue", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s_next", float_, [None, 1]),
            *(helper.make_tensor_value_info(f"s_{name}", float_, [1, None, case.hidden]) for name in names),
            helper.make_tensor_value_info("scanned", float_, [None, 1]),
        ],
    )
    carried_names = ["p_next", *(f"p_{name}" for name in names)]
    loop_outputs = [f"after_{name}" for name in carried_names]
    nodes = [
        helper.make_node("Transpose", ["history"], ["by_step"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["by_step", "last"], ["inputs"]),
        *stack("inputs", "p_", states=False),
        helper.make_node("Loop", ["steps", "yes", *carried_names], [*loop_outputs, "later"], body=body),
        helper.make_node("Unsqueeze", ["p_next", "first"], ["now"]),
        helper.make_node("Concat", ["now", "later"], ["all"], axis=0),
        helper.make_node("Squeeze", ["all", "last"], ["by_step_ahead"]),
        helper.make_node("Transpose", ["by_step_ahead"], ["ahead"], perm=[1, 0]),
    ]
    full_graph = helper.make_graph(
        nodes,
        "rollout",
        [helper.make_tensor_value_info("history", float_, [None, case.context])],
        [helper.make_tensor_value_info("ahead", float_, [None, case.horizon])],
        constants,
    )
    model = helper.make_model(full_graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def count_parameters(network: nn.Module) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


ENTRANTS: dict[str, Callable[[SpeedCase], PreparedEntrant]] = {
    "PyTorch loop": prepare_loop,
    "nn.LSTM, state carried": prepare_stepped_lstm,
    "ONNX Runtime, one Loop": prepare_onnx,
}

if __name__ == "__main__":
    serve_requests(ENTRANTS, ("torch", "onnxruntime"))
