"""That shapes really are checked while tests run: the checks come from an import hook, which could silently do nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import TypeCheckError

import forecaster
from forecaster.data.windows import Example, Tape, Window
from forecaster.metrics import mae
from forecaster.model.recurrent import Recurrent, State
from forecaster.model.rollout import Memory
from forecaster.model.scaling import Scale, measure
from forecaster.series import Series
from forecaster.spec import NetworkSpec
from tests.shape_checks import WITH_RECORDS


def test_an_argument_of_the_wrong_rank_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="values"):
        measure(torch.zeros(3, 4, 5, dtype=torch.float64), "none")


def test_an_argument_of_the_wrong_number_type_is_refused() -> None:
    with pytest.raises(TypeCheckError, match="values"):
        measure(torch.zeros(3, 4, dtype=torch.float32), "none")


def test_two_arguments_that_name_one_axis_must_agree_on_it() -> None:
    with pytest.raises(TypeCheckError, match="forecast"):
        mae(np.zeros((3, 4)), np.zeros((3, 5)))
    recurrent = Recurrent(NetworkSpec(hidden=3), inputs=2)
    inputs, state = torch.zeros(3, 4, 2), recurrent.start(3, like=torch.zeros(3))
    assert recurrent(inputs, state, torch.ones(3, 4, dtype=torch.bool))[0].shape == (3, 4, 3)


def test_a_dataclass_checks_its_fields() -> None:
    with pytest.raises(TypeCheckError, match="y"):
        Series("a", pd.Timestamp("2026-01-01"), "D", np.zeros((3, 2)))
    with pytest.raises(TypeCheckError, match="y"):
        Series("a", pd.Timestamp("2026-01-01"), "D", np.zeros(3, dtype=np.int64))


MEMORY = Memory(
    state=State(torch.zeros(1, 3, 4), None),
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
        lambda: Tape(torch.zeros(9), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)),
        lambda: State(torch.zeros(3, 4), None),
        lambda: Scale(
            torch.zeros(3, dtype=torch.float64),
            torch.zeros(4, dtype=torch.float64),
            torch.zeros(3, 1, dtype=torch.float64),
            torch.zeros(3, 0, dtype=torch.float64),
        ),
        lambda: Memory(**{**MEMORY._asdict(), "begun": torch.zeros(2, dtype=torch.bool)}),
    ],
)
def test_a_named_tuple_checks_its_fields(make) -> None:
    with pytest.raises(TypeCheckError):
        make()


def test_every_module_with_arrays_and_records_is_named() -> None:
    root = Path(forecaster.__file__).parent
    texts = {
        ".".join(("forecaster", *path.relative_to(root).with_suffix("").parts)): path.read_text()
        for path in root.rglob("*.py")
    }
    found = {name for name, text in texts.items() if "forecaster.shapes import" in text and "(NamedTuple)" in text}
    assert found == set(WITH_RECORDS)
