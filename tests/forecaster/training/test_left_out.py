"""Series that are too short to be trained on are counted and described, once, wherever the data are kept."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from forecaster import Forecaster
from forecaster.api import DataWarning
from forecaster.data.frames.panel import to_panel
from forecaster.training.datamodule import split_panel
from forecaster.training.sequence import describe_left_out, find_left_out, select_training_panel
from tests.factories import make_spec
from tests.forecaster.api.conftest import make_fields, make_frame

SHORTEST = {"no test": 6 + 1 + 12, "one window": 6 + 1 + 12 + 6, "refit": 6 + 1 + 6}  # of `make_fields`


def make_lengths(*lengths: int) -> pd.DataFrame:
    """Returns the first steps of as many series, named 1, 2, ..."""
    frame = make_frame(series=len(lengths))
    first = pd.concat(
        [group.head(length) for (_, group), length in zip(frame.groupby("unique_id"), lengths, strict=True)]
    )
    return first.reset_index(drop=True)


def list_data_warnings(data: Any, *, test_windows: int, **training: Any) -> list[str]:
    fields = make_fields()
    fields["training"] |= {"steps": 2, "epoch_steps": 2} | training
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Forecaster(spec=fields, accelerator="cpu").fit(data, test_windows=test_windows, progress=False)
    return [str(item.message) for item in caught if issubclass(item.category, DataWarning)]


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("test_windows", [0, 1, 3])
@pytest.mark.parametrize("valid_windows", [0, 2])
def test_the_series_left_out_are_those_that_the_last_fit_excludes(
    valid_windows: int, test_windows: int, refit: bool
) -> None:
    panel = to_panel(make_lengths(*range(2, 50)), freq="MS")
    spec = make_spec(training={"valid_windows": valid_windows, "refit": refit and valid_windows > 0})
    training_panel = select_training_panel(panel, spec, test_windows)
    last_training = spec.training.model_copy(update={"valid_windows": 0} if spec.training.refit else {})
    last_split = split_panel(training_panel, spec.model_copy(update={"training": last_training}))
    trained_on = {series.id for series in last_split.history.series}
    left_out = find_left_out(panel, spec, test_windows=test_windows)
    assert trained_on
    assert set(left_out.ids) == {series.id for series in panel.series} - trained_on
    assert left_out.longest_steps == left_out.min_steps - 1


@pytest.mark.parametrize("case", SHORTEST)
def test_a_fit_warns_once_of_all_series_that_are_one_step_too_short(case: str) -> None:
    test_windows, shortest = int(case != "no test"), SHORTEST[case]
    frame = make_lengths(60, shortest - 1, shortest - 2, shortest)
    [message] = list_data_warnings(frame, test_windows=test_windows, refit=case == "refit")
    assert message.startswith("2 of 4 series are too short to be trained on; the longest of them, '2', has ")
    assert f"has {shortest - 1} steps, and {shortest} are needed (6 of history, 1 to predict" in message
    assert ("12 of validation" in message) == (case != "refit")
    assert ("6 of test" in message) == (test_windows > 0)
    assert "lower `min_history`" in message


def test_a_fit_does_not_warn_if_every_series_is_trained_on() -> None:
    assert list_data_warnings(make_lengths(60, SHORTEST["one window"]), test_windows=1) == []


def test_files_larger_than_the_memory_give_the_same_warning(tmp_path: Path) -> None:
    frame = make_lengths(60, 9, 60)
    frame.astype({"unique_id": str}).to_parquet(tmp_path / "data.parquet")
    in_memory = list_data_warnings(frame, test_windows=1)
    assert len(in_memory) == 1
    assert list_data_warnings(tmp_path / "data.parquet", test_windows=1) == in_memory


def test_nothing_is_left_out_of_a_model_that_is_not_trained() -> None:
    panel = to_panel(make_lengths(60, 3), freq="MS")
    untrained = make_spec(training={"steps": 0, "initial": "base"})
    assert find_left_out(panel, untrained, test_windows=1).ids == ("2",)
    assert describe_left_out(panel, untrained, test_windows=1) is None
    assert describe_left_out(panel, make_spec(), test_windows=1) is not None
