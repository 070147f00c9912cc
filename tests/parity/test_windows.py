"""Windows by index against a slow enumeration of all of them."""

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
    """Series whose every value is another: thousands tell the series, the rest the step."""
    return [
        make_series(1000.0 * (number + 1) + np.arange(length), name=str(number))
        for number, length in enumerate(lengths)
    ]


def enumerate_examples(series: list[Series], *, context: int, min_history: int) -> list[tuple[list[float], float]]:
    """All windows of all series with at least `min_history` values before a cut, and the one value after it."""
    found = []
    for one in series:
        for cut in range(min_history, len(one)):
            known = one.y[max(0, cut - context) : cut].tolist()
            found.append(([float("nan")] * (context - len(known)) + known, float(one.y[cut])))
    return found


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, context=st.integers(1, 8), least=st.integers(1, 8))
def test_the_anchors_are_all_possible_cuts_in_order(lengths: list[int], context: int, least: int) -> None:
    assume(least <= context)
    series = make_numbered_series(lengths)
    anchors = CutoffIndex.from_panel_tensor(
        PanelTensor.from_series(series, context=context, horizon=1), min_history=least
    )
    expected = enumerate_examples(series, context=context, min_history=least)
    assert len(anchors) == len(expected)
    if not expected:
        return
    window, future, *_ = anchors.panel_tensor.extract_examples(
        anchors.positions(torch.arange(len(anchors))), context=context, horizon=1
    )
    np.testing.assert_array_equal(window.values.numpy(), [values for values, _ in expected])
    np.testing.assert_array_equal(future.numpy()[:, 0], [value for _, value in expected])


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, batch=st.integers(1, 7), steps=st.integers(1, 4), seed=st.integers(0, 2**31 - 1))
def test_a_feed_draws_existing_examples_and_the_requested_number(
    lengths: list[int], batch: int, steps: int, seed: int
) -> None:
    series, context, least = make_numbered_series(lengths), 4, 2
    anchors = CutoffIndex.from_panel_tensor(
        PanelTensor.from_series(series, context=context, horizon=1), min_history=least
    )
    assume(len(anchors))
    existing = {str(pair) for pair in enumerate_examples(series, context=context, min_history=least)}
    feed = EpochBatches(anchors, context, 1, batch, steps, seed, epoch=3)
    examples = list(feed)
    assert len(examples) == len(feed) == steps
    for example in examples:
        assert example.window.values.shape == (batch, context)
        for values, future in zip(example.window.values.tolist(), example.future.tolist(), strict=True):
            assert str((values, future[0])) in existing


def test_a_feed_is_determined_by_its_seed_and_epoch() -> None:
    anchors = CutoffIndex.from_panel_tensor(
        PanelTensor.from_series(make_numbered_series([50, 40]), context=4, horizon=1), min_history=2
    )

    def drawn(seed: int, epoch: int) -> list[list[list[float]]]:
        return [example.future.tolist() for example in EpochBatches(anchors, 4, 1, 8, 3, seed, epoch)]

    torch.manual_seed(1)
    expected = drawn(0, 0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert drawn(0, 0) == expected
    assert torch.equal(torch.get_rng_state(), before), "nor does it draw from the global generator"
    assert drawn(0, 1) != expected
    assert drawn(1, 0) != expected


def test_every_anchor_is_drawn_with_about_equal_frequency() -> None:
    anchors = CutoffIndex.from_panel_tensor(
        PanelTensor.from_series(make_numbered_series([3, 12, 1, 7]), context=4, horizon=1), min_history=2
    )
    [example] = EpochBatches(anchors, 4, 1, 16_000, 1, 0, 0)
    _, counts = np.unique(example.future.numpy(), return_counts=True)
    assert len(counts) == len(anchors) == 16
    assert (np.abs(counts - 1000) < 160).all()  # five standard deviations


def test_seeds_and_epochs_do_not_collide() -> None:
    mixed = [derive_epoch_seed(seed, epoch) for seed in range(40) for epoch in range(40)]
    assert len(set(mixed)) == len(mixed)
    assert all(0 <= number < 2**63 for number in mixed)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, context=st.integers(1, 15))
def test_batched_histories_are_their_last_values_left_padded(lengths: list[int], context: int) -> None:
    series = make_numbered_series(lengths)
    window = build_window([one.y for one in series], context=context)
    for row, one in zip(window.values.numpy(), series, strict=True):
        known = min(len(one), context)
        assert row[context - known :].tolist() == one.y[-known:].tolist()
        assert np.isnan(row[: context - known]).all()


def test_a_tape_on_a_device_has_equal_content() -> None:
    tape = PanelTensor.from_series(make_numbered_series([3, 4]), context=2, horizon=1)
    moved = CutoffIndex.from_panel_tensor(tape, min_history=1).to(torch.device("cpu"))
    np.testing.assert_array_equal(moved.panel_tensor.values, tape.values)
    assert moved.panel_tensor.lengths.tolist() == [3, 4]
