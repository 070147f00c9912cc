"""What a challenger must show before it answers users: the bounds of the gate, as one YAML file may set them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forecaster.errors import BadSpec

Share = Annotated[float, Field(ge=0, lt=1)]


class Policy(BaseModel):
    """The bounds of every check; what is not told stays as it is here.

    Attributes:
        margin: The least gain over the champion: 0.005 is half a percent of its mean scaled error.
        confidence: With which the gain must be above zero, one-sided.
        least: As many series, or as many windows, a comparison with the champion needs.
        naive_room: By what share errors may be larger than seasonal naive's.
        group_room: By what share the errors of any group of series may be larger than the champion's.
        group_by: The static column that makes the groups; without one, all that every series has, else quarters by scale.
        group_least: Series of a group that is looked at alone.
        implausible: Errors below this share of the best rival's are taken for a leak of the future.
        coverage_room: How far the coverage of the 80 % intervals may be off, chance apart.
        intervals: Whether a challenger must have calibrated intervals.
        exposure_gap: The largest ratio of free-running to one-step errors.
        megabytes: The largest bundle, in 10^6 bytes.
        latency_ms: The longest that one forecast may take, as the median of some.
        parity: How far answers of the graph, and answers as served, may be off the backtest's, as a share of a series' range.
        seed: Of the resampling.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    margin: Share = 0.005
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.99
    least: Annotated[int, Field(ge=2)] = 10
    naive_room: Annotated[float, Field(ge=0)] = 0.0
    group_room: Annotated[float, Field(ge=0)] = 0.2
    group_by: str | None = None
    group_least: Annotated[int, Field(ge=1)] = 5
    implausible: Share = 0.02
    coverage_room: Share = 0.1
    intervals: bool = False
    exposure_gap: Annotated[float, Field(gt=0)] = 5.0
    megabytes: Annotated[float, Field(gt=0)] = 256.0
    latency_ms: Annotated[float, Field(gt=0)] = 500.0
    parity: Annotated[float, Field(gt=0)] = 1e-3
    seed: Annotated[int, Field(ge=0)] = 0


def read_policy(path: Path | None) -> Policy:
    """The policy in a YAML file, the default one without a file; raises BadSpec."""
    if path is None:
        return Policy()
    try:
        fields: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadSpec(f"Expected a policy at {path}; it cannot be read ({error}).", where=str(path)) from error
    except yaml.YAMLError as error:
        raise BadSpec(f"Expected YAML in {path}; {' '.join(str(error).split())}.", where=str(path)) from error
    try:
        return Policy.model_validate({} if fields is None else fields)
    except ValidationError as error:
        fault = error.errors()[0]
        raise BadSpec(
            f"Expected a policy with the fields {', '.join(Policy.model_fields)} in {path}; "
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}. Correct it there.",
            where=str(path),
        ) from error
