"""Misspelt names of fields in specifications, policies, requests and settings are answered with the name that was meant."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from forecaster.errors import BadSpec, suggest_name
from forecaster.spec import Spec
from pipelines.promotion.policy import read_policy
from serving.errors import ApiError
from serving.formats.parsing import validate_fields
from serving.formats.schema import ForecastRequest

SPEC = {"name": "small", "context": 8, "horizon": 4}
SERIES = {"id": "a", "start": "2026-01-01", "freq": "h", "y": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"horizn": 4}, "horizn: There is no such field (did you mean 'horizon'?)"),
        (
            {"training": {"learning-rate": 0.1}},
            "training.learning-rate: There is no such field (did you mean 'learning_rate'?)",
        ),
        ({"hidden": 40}, "hidden: There is no such field (did you mean 'network.hidden'?)"),
        ({"colour": 1}, "colour: There is no such field."),
    ],
)
def test_a_specification_suggests_the_field(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadSpec) as raised:
        Spec.parse({**SPEC, **fields}, where="spec.yaml")
    assert expected in raised.value.message
    assert ("did you mean" in raised.value.message) == ("did you mean" in expected)


def test_a_policy_suggests_the_field(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("margine: 0.1\n")
    with pytest.raises(BadSpec, match=r"margine: There is no such field \(did you mean 'margin'\?\)\. Correct"):
        read_policy(tmp_path / "policy.yaml")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"series": [SERIES], "horizon": 2, "level": [0.1]}, "level: There is no such field (did you mean 'levels'?)"),
        (
            {"series": [SERIES, {**SERIES, "covariate": {}}], "horizon": 2},
            "series.1.covariate: There is no such field (did you mean 'covariates'?)",
        ),
    ],
)
def test_a_request_suggests_the_field(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ApiError) as raised:
        validate_fields(ForecastRequest, fields)
    assert expected in raised.value.message


def test_a_long_name_is_not_compared() -> None:
    start = time.perf_counter()
    assert suggest_name("horizon" * 100_000, ["horizon"]) == ""
    assert time.perf_counter() - start < 0.1
