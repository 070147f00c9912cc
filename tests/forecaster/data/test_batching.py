"""Tests of batches: validation of the values of a series, and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forecaster.data.batching import find_value_error, pad_histories
from forecaster.errors import CovariateUnknown, InputError, NotANumber, ValueOutOfRange
from forecaster.prediction.validation import InputValidator
from forecaster.series import Series
from tests.factories import START, make_fitted_model, make_spec, make_wave


class CountingArray(np.ndarray):
    """An array that counts how often all its values are read."""

    passes = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        CountingArray.passes += 1
        plain = [value.view(np.ndarray) if isinstance(value, CountingArray) else value for value in inputs]
        return getattr(ufunc, method)(*plain, **options)


def make_series_with_value(value: float, *, channel: str = "") -> Series:
    values = make_wave(12)
    values[5] = value
    if channel:
        return Series("a", START, "h", make_wave(12), channels={channel: values})
    return Series("a", START, "h", values)


@pytest.mark.parametrize("channel", ["", "heat"])
def test_infinite_and_too_large_values_have_different_errors(channel: str) -> None:
    channels = [channel] if channel else []
    for value, kind in ((np.inf, NotANumber), (-np.inf, NotANumber), (-1e101, ValueOutOfRange)):
        error = find_value_error(make_series_with_value(value, channel=channel), channels)
        assert type(error) is kind
        assert ("in the channel 'heat'" in error.message) == bool(channel)
    assert find_value_error(make_series_with_value(np.nan, channel=channel), channels) is None
    assert type(find_value_error(make_series_with_value(1.0), ["heat"])) is CovariateUnknown


def test_the_history_of_several_scenarios_is_validated_once() -> None:
    validator = InputValidator(make_fitted_model(make_spec()))
    history = Series("a", START, "h", make_wave(40).view(CountingArray))
    CountingArray.passes = 0
    assert validator.find_error(history, 3) is None
    passes_of_one, CountingArray.passes = CountingArray.passes, 0
    assert passes_of_one == 2, "the range of all values, and the observed ones within the context"
    assert validator.find_scenario_errors([history] * 20, 3) == [None] * 20
    assert CountingArray.passes == passes_of_one
    [*errors] = validator.find_scenario_errors([make_series_with_value(np.inf)] * 3, 3)
    assert [type(error) for error in errors] == [NotANumber] * 3
    assert all(isinstance(error, InputError) for error in errors)
    assert validator.find_scenario_errors([], 3) == []


@pytest.mark.parametrize("steps", [3, 8])
def test_padding_converts_to_the_requested_type_as_it_copies(steps: int) -> None:
    histories = [make_wave(8, seed=seed).reshape(-1, 2) for seed in range(3)]
    padded = pad_histories(histories, context=steps, fill_value=0.0, dtype=np.float32)
    expected = pad_histories(histories, context=steps, fill_value=0.0).astype(np.float32)
    assert padded.dtype == np.float32
    np.testing.assert_array_equal(padded, expected)
