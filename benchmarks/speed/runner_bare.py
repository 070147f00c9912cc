"""No library at all: the PyTorch loop that one writes by hand, nn.LSTM stepped with its state, and one ONNX graph."""

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
    """A recurrence and a linear output: what comes next, after every step."""

    def __init__(self, case: SpeedCase) -> None:
        super().__init__()
        kind = {"lstm": nn.LSTM, "gru": nn.GRU}[case.cell]
        self.recurrent = kind(1, case.hidden, case.layers, batch_first=True)
        self.output = nn.Linear(case.hidden, 1)

    def forward(self, inputs: Tensor, state: object = None) -> tuple[Tensor, object]:
        """What comes next, "row step 1", and the state."""
        outputs, state = self.recurrent(inputs, state)
        return self.output(outputs), state


def prepare_loop(case: SpeedCase) -> PreparedEntrant:
    """Windows shifted by one step, mean squared error, Adam; the data are one tensor, and windows are cut by index."""
    panel = torch.from_numpy(make_values(case)).float()
    span = torch.arange(case.context + 1)

    def act(steps: int) -> None:
        torch.manual_seed(0)
        network = BareNetwork(case)
        optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(steps):
            rows = torch.randint(len(panel), (case.batch, 1))
            firsts = torch.randint(panel.shape[1] - case.context, (case.batch, 1))
            windows = panel[rows, firsts + span][..., None]
            loss = nn.functional.mse_loss(network(windows[:, :-1])[0], windows[:, 1:])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    computes = "mean squared error at every step; no clipping, validation, checkpoint or log"
    return PreparedEntrant(act, {"parameters": count_parameters(BareNetwork(case)), "computes": computes})


def prepare_stepped_lstm(case: SpeedCase) -> PreparedEntrant:
    """Reads the history once, then one step at a time with the state."""
    network, history = BareNetwork(case).eval(), torch.from_numpy(make_histories(case)).float()[..., None]

    @torch.inference_mode()
    def act(_: int) -> np.ndarray:
        ahead, state = network(history)
        last = ahead[:, -1:]
        outcome = [last]
        for _ in range(case.horizon - 1):
            last, state = network(last, state)
            outcome.append(last)
        return np.asarray(torch.cat(outcome, dim=1)[..., 0].numpy())

    assert act(0).shape == (case.series, case.horizon)
    return PreparedEntrant(act, {"parameters": count_parameters(network), "computes": "raw values, one path"})


def prepare_onnx(case: SpeedCase) -> PreparedEntrant:
    """The same network as one ONNX graph: an LSTM over the history, and one Loop over the horizon."""
    if case.cell != "lstm":
        raise EntrantNotAvailable("the graph is written for the LSTM")
    network, history = BareNetwork(case).eval(), make_histories(case).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        build_onnx_graph(network, case).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def act(_: int) -> np.ndarray:
        return np.asarray(session.run(None, {"history": history})[0])

    difference = float(np.abs(act(0) - roll_out(network, history, case.horizon)).max())
    assert difference < 1e-4, f"the graph is {difference} off"
    return PreparedEntrant(
        act, {"parameters": count_parameters(network), "computes": "raw values, one path; the same as nn.LSTM to 1e-4"}
    )


def roll_out(network: BareNetwork, history: np.ndarray, horizon: int) -> np.ndarray:
    """What the network says step by step, for the graph to be held against."""
    with torch.inference_mode():
        ahead, state = network(torch.from_numpy(history)[..., None])
        outcome = [ahead[:, -1:]]
        for _ in range(horizon - 1):
            ahead, state = network(outcome[-1], state)
            outcome.append(ahead)
        return np.asarray(torch.cat(outcome, dim=1)[..., 0].numpy())


def build_onnx_graph(network: BareNetwork, case: SpeedCase) -> onnx.ModelProto:
    """History "row step" in, ahead "row horizon" out. ONNX wants gates in the order i o f c; torch has i f c o."""
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
        both = [reordered(weights["bias_ih"]), reordered(weights["bias_hh"])]
        constant(f"b{layer}", np.concatenate(both, axis=1))
    constant("v", network.output.weight.detach().numpy().T)
    constant("v0", network.output.bias.detach().numpy())
    constant("first", np.array([0], dtype=np.int64))
    constant("unit", np.array([1], dtype=np.int64))
    constant("last", np.array([2], dtype=np.int64))
    constant("steps", np.array(case.horizon - 1, dtype=np.int64))
    constant("yes", np.array(True))

    def stack(start: str, prefix: str, states: bool) -> list[onnx.NodeProto]:
        """The layers over the steps of `start`, "step row feature"; leaves its states in {prefix}h and {prefix}c."""
        nodes, below = [], start
        for layer in layers:
            before = [f"h{layer}_in", f"c{layer}_in"] if states else []
            nodes.append(
                helper.make_node(
                    "LSTM",
                    [below, f"w{layer}", f"r{layer}", f"b{layer}", *([""] if states else []), *before],
                    [f"{prefix}y{layer}", f"{prefix}h{layer}", f"{prefix}c{layer}"],
                    hidden_size=case.hidden,
                )
            )
            nodes.append(helper.make_node("Squeeze", [f"{prefix}y{layer}", "unit"], [f"{prefix}o{layer}"]))
            below = f"{prefix}o{layer}"
        top = f"{prefix}h{layers[-1]}"
        nodes.append(helper.make_node("Squeeze", [top, "first"], [f"{prefix}top"]))
        nodes.append(helper.make_node("MatMul", [f"{prefix}top", "v"], [f"{prefix}said"]))
        nodes.append(helper.make_node("Add", [f"{prefix}said", "v0"], [f"{prefix}next"]))  # "row 1"
        return nodes

    float_ = TensorProto.FLOAT
    names = [f"{part}{layer}" for layer in layers for part in ("h", "c")]
    body = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["fed", "first"], ["input"]),
            *stack("input", "s_", states=True),
            helper.make_node("Identity", ["go"], ["go_on"]),
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
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s_next", float_, [None, 1]),
            *(helper.make_tensor_value_info(f"s_{name}", float_, [1, None, case.hidden]) for name in names),
            helper.make_tensor_value_info("scanned", float_, [None, 1]),
        ],
    )
    carried_names = ["p_next", *(f"p_{name}" for name in names)]
    after = [f"after_{name}" for name in carried_names]
    nodes = [
        helper.make_node("Transpose", ["history"], ["by_step"], perm=[1, 0]),
        helper.make_node("Unsqueeze", ["by_step", "last"], ["inputs"]),
        *stack("inputs", "p_", states=False),
        helper.make_node("Loop", ["steps", "yes", *carried_names], [*after, "later"], body=body),
        helper.make_node("Unsqueeze", ["p_next", "first"], ["now"]),
        helper.make_node("Concat", ["now", "later"], ["all"], axis=0),
        helper.make_node("Squeeze", ["all", "last"], ["by_step_ahead"]),
        helper.make_node("Transpose", ["by_step_ahead"], ["ahead"], perm=[1, 0]),
    ]
    whole = helper.make_graph(
        nodes,
        "rollout",
        [helper.make_tensor_value_info("history", float_, [None, case.context])],
        [helper.make_tensor_value_info("ahead", float_, [None, case.horizon])],
        constants,
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def count_parameters(network: nn.Module) -> int:
    """How many parameters it has."""
    return sum(each.numel() for each in network.parameters())


ENTRANTS: dict[str, Callable[[SpeedCase], PreparedEntrant]] = {
    "PyTorch loop": prepare_loop,
    "nn.LSTM, state carried": prepare_stepped_lstm,
    "ONNX Runtime, one Loop": prepare_onnx,
}

if __name__ == "__main__":
    serve_requests(ENTRANTS, ("torch", "onnxruntime"))
