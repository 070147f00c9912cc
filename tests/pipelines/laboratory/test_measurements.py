"""The figures of merit on cases made by hand, where they are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forecaster.data.encoding import Encoding
from forecaster.model.recurrence.cells import GRUStep, LSTMStep
from forecaster.model.recurrent import RecurrentStack
from forecaster.model.regressor import build_network
from forecaster.prediction.fitted_model import FittedModel
from forecaster.spec import HeadSpec, NetworkSpec, Spec
from pipelines.laboratory.counting import count_of, longest_right_prefix, make_word, measure_counting
from pipelines.laboratory.gradients import measure_gradient_by_lag, measure_gradient_norm
from pipelines.laboratory.languages import Word, find_right_words, memory_of, record_steps
from pipelines.laboratory.remembering import make_words as make_remembering_words
from pipelines.laboratory.selective import gate_of, make_words
from pipelines.laboratory.units import find_unit


def test_the_gradient_of_a_linear_recurrence_is_the_power_of_its_weight() -> None:
    """Positive inputs keep a rectified unit in its linear range."""
    recurrent = RecurrentStack(NetworkSpec(cell="relu", hidden=1), input_size=1)
    with torch.no_grad():
        for name, value in (("weight_ih_l0", 1.0), ("weight_hh_l0", 0.8), ("bias_ih_l0", 0.0), ("bias_hh_l0", 0.0)):
            getattr(recurrent.layers[0], name).fill_(value)
    gradients = measure_gradient_by_lag(recurrent, torch.ones(3, 12, 1))
    np.testing.assert_allclose(gradients, 0.8 ** np.arange(12), rtol=1e-6)


@pytest.mark.parametrize(("cell", "layers"), [("lstm", 1), ("gru", 2)])
def test_the_gradient_by_lag_is_that_of_a_perturbed_state(cell: str, layers: int) -> None:
    """Finite differences of the state three steps before the end, in float64."""
    torch.manual_seed(0)
    recurrent = RecurrentStack(NetworkSpec(cell=cell, hidden=4, layers=layers), input_size=2)
    inputs, mask = torch.randn(1, 8, 2), torch.ones(1, 1, dtype=torch.bool)
    relative = measure_gradient_by_lag(recurrent, inputs)
    recurrent = recurrent.double()
    state = recurrent.initial_state(1, like=inputs)
    state = type(state)(*(None if part is None else part.double() for part in state))
    for step in range(5):
        _, state = recurrent(inputs.double()[:, step : step + 1], state, mask)
    parts = [part for part in state if part is not None]
    squares = 0.0
    for index, part in enumerate(parts):
        for position in range(part.numel()):
            ends = []
            for sign in (1, -1):
                changed = [other.clone() for other in parts]
                changed[index].view(-1)[position] += sign * 1e-5
                moved = type(state)(*changed, *([None] * (2 - len(changed))))
                for step in range(5, 8):
                    _, moved = recurrent(inputs.double()[:, step : step + 1], moved, mask)
                ends.append(float(moved.hidden[-1].detach().sum()))
            squares += ((ends[0] - ends[1]) / 2e-5) ** 2
    assert relative[3] == pytest.approx(np.sqrt(squares) / 2, rel=1e-4)  # at lag 0 the norm is that of four ones


def test_the_norm_of_a_gradient_joins_all_parameters() -> None:
    first, second = torch.tensor([1.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    assert measure_gradient_norm((3 * first + 4 * second).sum(), [first, second]) == pytest.approx(5.0)


def make_counter() -> FittedModel:
    """An LSTM that counts by hand: unit 0 adds a and subtracts b, unit 1 has seen the X; the logits follow from both."""
    vocabulary = (".", "X", "a", "b")
    spec = Spec(
        name="counter",
        context=4,
        horizon=1,
        min_history=1,
        scaling="none",
        head=HeadSpec(kind="symbols", vocabulary=vocabulary),
        network=NetworkSpec(cell="lstm", hidden=2),
    )
    network, large, step = build_network(spec, seed=0), 50.0, 1e-3
    layer = network.recurrent.layers[0]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        layer.bias_ih_l0[:] = torch.tensor(
            [large, large, large, large, 0.0, 0.0, large, large]
        )  # gates open, no content
        new = 4  # first row of the candidates; the inputs are the symbols of the vocabulary, and the mask
        layer.weight_ih_l0[new, vocabulary.index("a")] = step
        layer.weight_ih_l0[new, vocabulary.index("b")] = -step
        layer.weight_ih_l0[new + 1, vocabulary.index("X")] = large
        # After the X: b while the count is at least half a step, then the end; before the X: a.
        seen = float(np.tanh(1.0))
        network.output.weight[vocabulary.index("a")] = torch.tensor([0.0, -large])
        network.output.bias[vocabulary.index("a")] = large * seen / 2
        network.output.weight[vocabulary.index("b")] = torch.tensor([1e4, 0.0])
        network.output.bias[vocabulary.index("b")] = -1e4 * step / 2
        network.output.bias[vocabulary.index("X")] = -1e6
    facts = {"start_marker": True}
    return FittedModel(spec, "1", 1, 0, Encoding(), network.eval(), facts=facts)


def test_a_counter_made_by_hand_is_right_and_its_counting_unit_is_found() -> None:
    model = make_counter()
    assert find_right_words(model, [make_word(count) for count in (1, 2, 9, 40)]) == [True] * 4
    wrong = [Word("aaXb.", 3), Word("aXbb.", 2), Word("aXb", 2)]
    assert find_right_words(model, wrong) == [False, False, True]
    memory = memory_of(record_steps(model, "aaXb.")[0])[0]
    np.testing.assert_allclose(memory[:, 0].numpy(), 1e-3 * np.array([1, 2, 2, 1, 1]), rtol=1e-4)
    measures, curves = measure_counting(model, seed=0)
    assert measures["right up to n"] >= 100
    assert measures["correlation of the counting unit"] == pytest.approx(1.0, abs=1e-3)
    assert measures["by chance (95 %)"] < 0.9
    assert int(np.argmax(curves["counting unit"])) in (18, 19)


def test_counts_and_words() -> None:
    assert count_of("aaXb.").tolist() == [1, 2, 2, 1, 1]
    assert longest_right_prefix([1, 2, 3, 200], [True, True, False, True]) == 2
    assert longest_right_prefix([1, 2], [False, True]) == 0
    assert longest_right_prefix([1, 200], [True, True]) == 200
    assert [word.text for word in make_remembering_words(2)] == ["AxxYa.", "BxxYb."]
    for word in make_words(20, fewest=3, most=5, seed=1):
        head, tail = word.text[: word.start], word.text[word.start :]
        assert head.endswith("Y")
        assert tail == "b" * head.count("a") + "."
        assert 3 <= head.count("a") <= 5


def test_the_unit_that_follows_a_signal_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(300)
    signal = np.sin(steps / 11) + 0.1 * rng.normal(size=300)
    noise = rng.normal(size=(300, 6)).astype(np.float32)
    followed = noise.copy()
    followed[:, 4] -= 3 * signal
    match = find_unit(followed, signal, seed=1)
    assert match.unit == 4
    assert match.correlation < -0.8
    assert match.p_value == pytest.approx(0.001)
    p_values = [
        find_unit(np.roll(noise, shift, axis=0), signal, seed=1, permutations=199).p_value
        for shift in range(0, 300, 15)
    ]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.15


def test_the_gate_that_writes_a_unit() -> None:
    part = torch.arange(6.0).reshape(1, 3, 2) / 10
    assert gate_of(LSTMStep(part, *([part * 0] * 5)), 1).tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert gate_of(GRUStep(part * 0, part, part * 0, part * 0), 0).tolist() == pytest.approx([1.0, 0.8, 0.6])
