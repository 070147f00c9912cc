"""Windows by index, compared with a slow enumeration of all windows."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forecaster.data.windows import CutoffIndex, EpochBatches, PanelTensor, build_window, derive_epoch_seed
from forecaster.series import Series
from tests.factories import make_series

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def make_numbered_series(lengths: list[int]) -> list[Series]:
    """Series without equal values: thousands identify the series, the rest the step."""
    return [
        make_series(1000.0 * (index + 1) + np.arange(length), name=str(index)) for index, length in enumerate(lengths)
    ]


def enumerate_examples(series: list[Series], *, context: int, min_history: int) -> list[tuple[list[float], float]]:
    """Lists all windows with at least `min_history` values before a cutoff, each with the value after it."""
    examples = []
    for item in series:
        for cutoff in range(min_history, len(item)):
            history = item.y[max(0, cutoff - context) : cutoff].tolist()
            examples.append(([float("nan")] * (context - len(history)) + history, float(item.y[cutoff])))
    return examples


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, context=st.integers(1, 8), min_history=st.integers(1, 8))
def test_the_anchors_are_all_possible_cuts_in_order(lengths: list[int], context: int, min_history: int) -> None:
    assume(min_history <= context)
    series = make_numbered_series(lengths)
    cutoffs = CutoffIndex.from_source(
        PanelTensor.from_series(series, context=context, horizon=1), min_history=min_history
    )
    expected = enumerate_examples(series, context=context, min_history=min_history)
    assert len(cutoffs) == len(expected)
    if not expected:
        return
    window, future, *_ = cutoffs.source.extract_examples(
        cutoffs.positions(torch.arange(len(cutoffs))), context=context, horizon=1
    )
    np.testing.assert_array_equal(window.values.numpy(), [values for values, _ in expected])
    np.testing.assert_array_equal(future.numpy()[:, 0], [value for _, value in expected])


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, batch=st.integers(1, 7), steps=st.integers(1, 4), seed=st.integers(0, 2**31 - 1))
def test_a_feed_draws_existing_examples_and_the_requested_number(
    lengths: list[int], batch: int, steps: int, seed: int
) -> None:
    series, context, min_history = make_numbered_series(lengths), 4, 2
    cutoffs = CutoffIndex.from_source(
        PanelTensor.from_series(series, context=context, horizon=1), min_history=min_history
    )
    assume(len(cutoffs))
    all_examples = {str(pair) for pair in enumerate_examples(series, context=context, min_history=min_history)}
    batches = EpochBatches(cutoffs, context, 1, batch, steps, seed, epoch=3)
    examples = list(batches)
    assert len(examples) == len(batches) == steps
    for example in examples:
        assert example.window.values.shape == (batch, context)
        for values, future in zip(example.window.values.tolist(), example.future.tolist(), strict=True):
            assert str((values, future[0])) in all_examples


def test_a_feed_is_determined_by_its_seed_and_epoch() -> None:
    cutoffs = CutoffIndex.from_source(
        PanelTensor.from_series(make_numbered_series([50, 40]), context=4, horizon=1), min_history=2
    )

    def draw_futures(seed: int, epoch: int) -> list[list[list[float]]]:
        return [example.future.tolist() for example in EpochBatches(cutoffs, 4, 1, 8, 3, seed, epoch)]

    torch.manual_seed(1)
    expected = draw_futures(0, 0)
    torch.manual_seed(2)
    rng_state = torch.get_rng_state()
    assert draw_futures(0, 0) == expected
    assert torch.equal(torch.get_rng_state(), rng_state), "the global generator is not used"
    assert draw_futures(0, 1) != expected
    assert draw_futures(1, 0) != expected


def test_every_anchor_is_drawn_with_about_equal_frequency() -> None:
    cutoffs = CutoffIndex.from_source(
        PanelTensor.from_series(make_numbered_series([3, 12, 1, 7]), context=4, horizon=1), min_history=2
    )
    [example] = EpochBatches(cutoffs, 4, 1, 16_000, 1, 0, 0)
    _, counts = np.unique(example.future.numpy(), return_counts=True)
    assert len(counts) == len(cutoffs) == 16
    assert (np.abs(counts - 1000) < 160).all()  # five standard deviations


def test_seeds_and_epochs_do_not_collide() -> None:
    seeds = [derive_epoch_seed(seed, epoch) for seed in range(40) for epoch in range(40)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= value < 2**63 for value in seeds)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, context=st.integers(1, 15))
def test_batched_histories_are_their_last_values_left_padded(lengths: list[int], context: int) -> None:
    series = make_numbered_series(lengths)
    window = build_window([item.y for item in series], context=context)
    for row, item in zip(window.values.numpy(), series, strict=True):
        length = min(len(item), context)
        assert row[context - length :].tolist() == item.y[-length:].tolist()
        assert np.isnan(row[: context - length]).all()


def test_a_tape_on_a_device_has_equal_content() -> None:
    tensor = PanelTensor.from_series(make_numbered_series([3, 4]), context=2, horizon=1)
    moved = CutoffIndex.from_source(tensor, min_history=1).to(torch.device("cpu"))
    np.testing.assert_array_equal(moved.source.values, tensor.values)
    assert moved.source.lengths.tolist() == [3, 4]
