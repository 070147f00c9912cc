"""The policy of the promotion gate: thresholds that a challenger must meet, read from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forecaster.errors import BadSpec, describe_field_error

Share = Annotated[float, Field(ge=0, lt=1)]


class Policy(BaseModel):
    """Thresholds of the promotion gate; omitted fields keep these defaults.

    Attributes:
        margin: Smallest relative gain over the champion: 0.005 is half a percent of its mean scaled error.
        confidence: One-sided confidence with which the gain must be above zero.
        least: Number of series, or of windows, that a comparison with the champion needs.
        naive_room: Share by which the error may exceed that of seasonal naive, and that of the last value.
        zero_shot: Whether a challenger is rejected that is clearly worse than the pretrained network, by more than `naive_room`.
        group_room: Share by which the error of any group of series may exceed the champion's.
        group_by: Static column that defines the groups; without one, every static column that all series have, or else
            quarters of the series by scale.
        group_least: Smallest number of series of a group that is checked.
        implausible: An error below this share of the better of seasonal naive and champion counts as a leak of the future.
        coverage_room: Tolerance of the coverage of the 80 % intervals, in addition to two standard errors.
        interval_room: Share by which the weighted quantile loss may exceed the champion's; a challenger is rejected if it exceeds
            it with the confidence above.
        intervals: Whether a challenger must have calibrated intervals.
        exposure_gap: Largest ratio of free-running to one-step errors.
        megabytes: Largest size of the bundle, in 10^6 bytes.
        latency_ms: Largest median latency of one forecast, in milliseconds.
        parity: Largest difference of the ONNX graph from the reference engine, and of served forecasts from the backtest,
            as a share of a series' range.
        days_ahead: Largest number of days by which the last step of the data may begin after the present. Declare a larger
            number for a model whose timestamps are not those of a clock (a simulation, a planning calendar).
        seed: Seed of the resampling.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    margin: Share = 0.005
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.99
    least: Annotated[int, Field(ge=2)] = 10
    naive_room: Annotated[float, Field(ge=0)] = 0.0
    zero_shot: bool = True
    group_room: Annotated[float, Field(ge=0)] = 0.2
    group_by: str | None = None
    group_least: Annotated[int, Field(ge=1)] = 5
    implausible: Share = 0.02
    coverage_room: Share = 0.1
    interval_room: Annotated[float, Field(ge=0)] = 0.01
    intervals: bool = False
    exposure_gap: Annotated[float, Field(gt=0)] = 5.0
    megabytes: Annotated[float, Field(gt=0)] = 256.0
    latency_ms: Annotated[float, Field(gt=0)] = 500.0
    parity: Annotated[float, Field(gt=0)] = 1e-3
    days_ahead: Annotated[float, Field(ge=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0


def read_policy(path: Path | None) -> Policy:
    """Reads the policy from a YAML file; returns the default policy if `path` is None. Raises BadSpec."""
    if path is None:
        return Policy()
    try:
        fields: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadSpec(
            f"Expected a policy at {path}; it cannot be read ({error}). Correct the path.", where=str(path)
        ) from error
    except yaml.YAMLError as error:
        raise BadSpec(
            f"Expected YAML in {path}; {' '.join(str(error).split())}. Correct it there.", where=str(path)
        ) from error
    try:
        return Policy.model_validate({} if fields is None else fields)
    except ValidationError as error:
        first_error = error.errors()[0]
        raise BadSpec(
            f"Expected a policy with the fields {', '.join(Policy.model_fields)} in {path}; "
            f"{'.'.join(map(str, first_error['loc'])) or 'the file'}: {describe_field_error(first_error, Policy)}. "
            "Correct it there.",
            where=str(path),
        ) from error
