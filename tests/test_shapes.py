"""Shapes are checked while tests run: the checks come from an import hook, which could silently do nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import TypeCheckError

import forecaster
from forecaster.data.windows import Example, PanelTensor, Window
from forecaster.metrics import mae
from forecaster.model.recurrent import RecurrentStack, RecurrentState
from forecaster.model.rollout import RolloutState
from forecaster.model.scaling import Scale, measure_scale
from forecaster.series import Series
from forecaster.shapes import Float
from forecaster.spec import NetworkSpec
from tests.shape_checks import MODULES_WITH_RECORDS, check_calls


def test_an_argument_of_the_wrong_rank_is_rejected() -> None:
    with pytest.raises(TypeCheckError, match="values"):
        measure_scale(torch.zeros(3, 4, 5, dtype=torch.float64), "none")


def test_an_argument_of_the_wrong_dtype_is_rejected() -> None:
    with pytest.raises(TypeCheckError, match="values"):
        measure_scale(torch.zeros(3, 4, dtype=torch.float32), "none")


def test_two_arguments_with_a_common_axis_must_agree_on_it() -> None:
    with pytest.raises(TypeCheckError, match="forecast"):
        mae(np.zeros((3, 4)), np.zeros((3, 5)))
    recurrent = RecurrentStack(NetworkSpec(hidden=3), input_size=2)
    inputs, state = torch.zeros(3, 4, 2), recurrent.initial_state(3, like=torch.zeros(3))
    assert recurrent(inputs, state, torch.ones(3, 4, dtype=torch.bool))[0].shape == (3, 4, 3)


def test_a_dataclass_checks_its_fields() -> None:
    with pytest.raises(TypeCheckError, match="y"):
        Series("a", pd.Timestamp("2026-01-01"), "D", np.zeros((3, 2)))
    with pytest.raises(TypeCheckError, match="y"):
        Series("a", pd.Timestamp("2026-01-01"), "D", np.zeros(3, dtype=np.int64))


ROLLOUT_STATE = RolloutState(
    recurrent_state=RecurrentState(torch.zeros(1, 3, 4), None),
    output=torch.zeros(3, 4),
    recent=torch.zeros(3, 1),
    begun=torch.zeros(3, dtype=torch.bool),
    scale=Scale(
        torch.zeros(3).double(), torch.zeros(3).double(), torch.zeros(3, 1).double(), torch.zeros(3, 0).double()
    ),
    bound=torch.zeros(3),
    time=0,
    static=torch.zeros(3, 0),
)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Window(torch.zeros(3, dtype=torch.float64)),
        lambda: Example(Window(torch.zeros(3, 4, dtype=torch.float64)), torch.zeros(3, dtype=torch.float64)),
        lambda: PanelTensor(torch.zeros(9), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)),
        lambda: RecurrentState(torch.zeros(3, 4), None),
        lambda: Scale(
            torch.zeros(3, dtype=torch.float64),
            torch.zeros(4, dtype=torch.float64),
            torch.zeros(3, 1, dtype=torch.float64),
            torch.zeros(3, 0, dtype=torch.float64),
        ),
        lambda: RolloutState(**{**ROLLOUT_STATE._asdict(), "begun": torch.zeros(2, dtype=torch.bool)}),
    ],
)
def test_a_named_tuple_checks_its_fields(make) -> None:
    with pytest.raises(TypeCheckError):
        make()


def test_every_module_with_array_records_is_listed() -> None:
    root = Path(forecaster.__file__).parent
    texts = {
        ".".join(("forecaster", *path.relative_to(root).with_suffix("").parts)): path.read_text()
        for path in root.rglob("*.py")
    }
    modules_with_records = {
        name for name, text in texts.items() if "forecaster.shapes import" in text and "(NamedTuple)" in text
    }
    assert modules_with_records == set(MODULES_WITH_RECORDS)


def test_a_result_and_a_plain_argument_are_checked_too() -> None:
    @check_calls
    def first_row(values: Float[np.ndarray, "row step"]) -> Float[np.ndarray, "row"]:
        return values[0]

    @check_calls
    def count(number: int) -> str:
        return number  # type: ignore[return-value]

    assert first_row(np.zeros((3, 3))).shape == (3,)
    with pytest.raises(TypeCheckError, match="return"):
        first_row(np.zeros((3, 4)))
    with pytest.raises(TypeCheckError, match="return"):
        count(1)
    with pytest.raises(TypeCheckError, match="number"):
        count("one")
