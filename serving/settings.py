"""Where and how we serve. Settings come from the environment (FORECASTER_SERVING_*).

None changes a forecast, but one: with `adaptive` the intervals follow what came.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

ENV_PREFIX = "FORECASTER_SERVING_"
# Absolute, because the server's processes run in another working directory.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
MIN_KEY_LENGTH = 32  # characters of a key that states are signed with


def _validate_state_keys(keys: str) -> str:
    if any(len(key) < MIN_KEY_LENGTH for key in keys.split(";") if keys):
        raise ValueError(f"expected keys of {MIN_KEY_LENGTH} characters or more, `;` between them")
    return keys


def _validate_ledger(value: str) -> str:
    if value not in ("off", "on") and not value.startswith(("sqlite:///", "postgresql+psycopg://")):
        raise ValueError("Expected off, on, sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME")
    return value


class Settings(BaseModel):
    """The settings of the server and of the follower."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    host: IPv4Address | IPv6Address = Field(default=IPv4Address("127.0.0.1"), description="address to listen on")
    port: int = Field(default=3000, ge=1, le=65535, description="port to listen on")
    workers: int = Field(default=1, ge=1, le=256, description="processes that answer requests")

    keys: str = Field(
        default="", repr=False, description="hashes of API keys, as lines of a key file, `;` between them"
    )
    keys_file: AbsolutePath | None = Field(
        default=None, description="file with hashes of API keys; changes to it are followed"
    )
    without_keys: bool = Field(
        default=False, description="answer anyone though other machines reach us: something in front asks who comes"
    )

    slot: AbsolutePath = Field(default=Path(".forecaster/slot"), description="folder with the model in use")
    reload_s: float = Field(default=1.0, gt=0, description="seconds between looks at the slot")
    retry_s: float = Field(default=60.0, gt=0, description="seconds before a refused bundle is tried again")

    registry: str | None = Field(default=None, description="address of the model registry; none: nothing is followed")
    model: str | None = Field(default=None, description="name of the registered model to follow")
    alias: str = Field(default="champion", description="alias of the version to follow")
    poll_s: float = Field(default=5.0, gt=0, description="seconds between questions to the registry")
    keep: int = Field(default=3, ge=2, description="releases kept in the slot, the one in use included")

    max_body: int = Field(default=16 * 2**20, ge=1024, description="largest request body in bytes")
    max_series: int = Field(default=1000, ge=1, description="most series in one request")
    max_history: int = Field(default=100_000, ge=1, description="longest history of one series, in steps")
    max_horizon: int = Field(default=1000, ge=1, le=100_000, description="longest horizon, in steps")
    max_values: int = Field(
        default=2_000_000,
        ge=1,
        description="most numbers and texts in the histories, covariates and channels of one request",
    )
    max_samples: int = Field(default=1000, ge=0, description="most samples of one series; 0: none are drawn")
    max_lines: int = Field(default=100_000, ge=1, description="most series in one request of lines, which are streamed")
    max_answer: int = Field(default=1_000_000, ge=1, description="most numbers in one answer, quantiles too")

    state_keys: Annotated[str, AfterValidator(_validate_state_keys)] = Field(
        default="",
        repr=False,
        description="secret keys of states, `;` between them: the first signs, all are known; none: one for each start",
    )
    max_state: int = Field(default=2**18, ge=1024, description="longest state of one series, in characters")
    max_scenarios: int = Field(default=100, ge=1, description="most scenarios in one request")

    ledger: Annotated[str, AfterValidator(_validate_ledger)] = Field(
        default="off",
        repr=False,
        description="where served forecasts are kept: off, on (ledger.db in the slot's folder), or the address of a database",
    )
    ledger_share: float = Field(default=1.0, ge=0, le=1, description="share of the forecasts that is kept")
    ledger_days: float = Field(default=90.0, gt=0, description="days after which forecasts and actuals are forgotten")
    ledger_clear_ids: bool = Field(default=False, description="keep ids of series in clear too, not their hash alone")
    ledger_waiting: int = Field(
        default=10_000, ge=1, description="forecasts that may wait to be kept; more are dropped"
    )
    adaptive: bool = Field(default=False, description="let late actuals move the intervals; needs a ledger")

    shadow: str = Field(
        default="",
        description="alias of a version that forecasts beside the model in use, for the ledger alone; none: ''",
    )
    shadow_share: float = Field(
        default=0.1, ge=0, le=1, description="share of the kept forecasts that it makes as well"
    )

    rollouts: int = Field(default=1, ge=1, le=64, description="requests that one worker computes at the same time")
    max_in_flight: int = Field(default=64, ge=1, description="requests one worker holds before it says 429")
    timeout_s: float = Field(default=30.0, gt=0, description="seconds before a forecast is given up with 504")
    grace_s: int = Field(default=10, ge=1, description="seconds that running requests get when the server is stopped")

    @property
    def ledger_url(self) -> str | None:
        """The address of the ledger, if there is to be one."""
        if self.ledger in ("off", "on"):
            return f"sqlite:///{self.slot / 'ledger.db'}" if self.ledger == "on" else None
        return self.ledger

    @property
    def shadow_slot(self) -> Path | None:
        """The folder with the model that forecasts beside the one in use, if there is to be one."""
        return self.slot / "shadow" if self.shadow and self.ledger_url is not None else None

    @property
    def follows_registry(self) -> bool:
        """Whether a registry is to be followed."""
        return self.registry is not None and self.model is not None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """The settings of an environment; raises ValidationError for an unknown FORECASTER_SERVING_* too: a slip."""
        ours = {
            name.removeprefix(ENV_PREFIX).lower(): value
            for name, value in environ.items()
            if name.startswith(ENV_PREFIX)
        }
        return cls.model_validate(ours)

    def with_state_key(self) -> Self:
        """The same; where there is no key to sign states with, with a new one."""
        return (
            self if self.state_keys else self.model_copy(update={"state_keys": secrets.token_urlsafe(MIN_KEY_LENGTH)})
        )

    def to_environment(self) -> dict[str, str]:
        """These settings as environment variables: the inverse of `from_environment`, for a child process."""
        fields = self.model_dump(mode="json", exclude_none=True)
        return {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in fields.items()}
