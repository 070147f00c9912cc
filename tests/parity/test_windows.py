"""Windows by index against a slow enumeration of all of them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forecaster.data.windows import Anchors, Feed, Tape, mix, stack
from forecaster.series import Series
from tests.factories import one_series

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def numbered(lengths: list[int]) -> list[Series]:
    """Series whose every value is another: thousands tell the series, the rest the step."""
    return [
        one_series(1000.0 * (number + 1) + np.arange(length), name=str(number)) for number, length in enumerate(lengths)
    ]


def every_example(series: list[Series], *, context: int, least: int) -> list[tuple[list[float], float]]:
    """All windows of all series with at least `least` values before a cut, and the one value after it."""
    found = []
    for one in series:
        for cut in range(least, len(one)):
            known = one.y[max(0, cut - context) : cut].tolist()
            found.append(([float("nan")] * (context - len(known)) + known, float(one.y[cut])))
    return found


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, context=st.integers(1, 8), least=st.integers(1, 8))
def test_the_anchors_are_every_cut_there_is_in_order(lengths: list[int], context: int, least: int) -> None:
    assume(least <= context)
    series = numbered(lengths)
    anchors = Anchors.of(Tape.record(series, context=context, horizon=1), least=least)
    expected = every_example(series, context=context, least=least)
    assert len(anchors) == len(expected)
    if not expected:
        return
    window, future, *_ = anchors.tape.cut(anchors.places(torch.arange(len(anchors))), context=context, horizon=1)
    np.testing.assert_array_equal(window.values.numpy(), [values for values, _ in expected])
    np.testing.assert_array_equal(future.numpy()[:, 0], [value for _, value in expected])


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, batch=st.integers(1, 7), steps=st.integers(1, 4), seed=st.integers(0, 2**31 - 1))
def test_a_feed_draws_examples_that_exist_and_as_many_as_asked(
    lengths: list[int], batch: int, steps: int, seed: int
) -> None:
    series, context, least = numbered(lengths), 4, 2
    anchors = Anchors.of(Tape.record(series, context=context, horizon=1), least=least)
    assume(len(anchors))
    existing = {str(pair) for pair in every_example(series, context=context, least=least)}
    feed = Feed(anchors, context, 1, batch, steps, seed, epoch=3)
    examples = list(feed)
    assert len(examples) == len(feed) == steps
    for example in examples:
        assert example.window.values.shape == (batch, context)
        for values, future in zip(example.window.values.tolist(), example.future.tolist(), strict=True):
            assert str((values, future[0])) in existing


def test_a_feed_is_the_same_for_the_same_seed_and_epoch_and_another_for_another() -> None:
    anchors = Anchors.of(Tape.record(numbered([50, 40]), context=4, horizon=1), least=2)

    def drawn(seed: int, epoch: int) -> list[list[list[float]]]:
        return [example.future.tolist() for example in Feed(anchors, 4, 1, 8, 3, seed, epoch)]

    torch.manual_seed(1)
    expected = drawn(0, 0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert drawn(0, 0) == expected
    assert torch.equal(torch.get_rng_state(), before), "nor does it draw from the global generator"
    assert drawn(0, 1) != expected
    assert drawn(1, 0) != expected


def test_every_anchor_is_drawn_about_equally_often() -> None:
    anchors = Anchors.of(Tape.record(numbered([3, 12, 1, 7]), context=4, horizon=1), least=2)
    [example] = Feed(anchors, 4, 1, 16_000, 1, 0, 0)
    _, counts = np.unique(example.future.numpy(), return_counts=True)
    assert len(counts) == len(anchors) == 16
    assert (np.abs(counts - 1000) < 160).all()  # five standard deviations


def test_no_two_of_many_seeds_and_epochs_mix_to_one_number() -> None:
    mixed = [mix(seed, epoch) for seed in range(40) for epoch in range(40)]
    assert len(set(mixed)) == len(mixed)
    assert all(0 <= number < 2**63 for number in mixed)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, context=st.integers(1, 15))
def test_stacked_histories_are_their_last_values_padded_on_the_left(lengths: list[int], context: int) -> None:
    series = numbered(lengths)
    window = stack([one.y for one in series], context=context)
    for row, one in zip(window.values.numpy(), series, strict=True):
        known = min(len(one), context)
        assert row[context - known :].tolist() == one.y[-known:].tolist()
        assert np.isnan(row[: context - known]).all()


def test_a_tape_on_a_device_is_the_same_tape() -> None:
    tape = Tape.record(numbered([3, 4]), context=2, horizon=1)
    moved = Anchors.of(tape, least=1).to(torch.device("cpu"))
    np.testing.assert_array_equal(moved.tape.values, tape.values)
    assert moved.tape.length.tolist() == [3, 4]
