"""Settings of the server and of the follower, read from the environment (FORECASTER_SERVING_*).

No setting changes a forecast, with one exception: with `adaptive` the intervals adapt to late actuals.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from forecaster.errors import find_similar_name
from forecaster.storage.addresses import redact_addresses

ENV_PREFIX = "FORECASTER_SERVING_"
# Absolute, because the server's processes run in a different working directory.
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
_ROOT_PATH_PATTERN = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")  # no empty segment, no dots alone
MIN_KEY_LENGTH = 32  # characters of a key that signs states


def _validate_state_keys(keys: str) -> str:
    if any(len(key) < MIN_KEY_LENGTH for key in keys.split(";") if keys):
        raise ValueError(f"expected keys of {MIN_KEY_LENGTH} characters or more, separated by `;`")
    return keys


def _validate_root_path(value: str) -> str:
    root_path = value.rstrip("/")
    if root_path and not _ROOT_PATH_PATTERN.fullmatch(root_path):
        raise ValueError("Expected a path such as /forecasts, of letters, digits, `-`, `.`, `_`, `~` and `/`")
    return root_path


def _parse_networks(value: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(part.strip(), strict=False) for part in value.split(";") if part.strip())
    except ValueError as error:
        raise ValueError("Expected addresses or networks such as 10.0.0.5;10.1.0.0/16, separated by `;`") from error


def _validate_proxies(value: str) -> str:
    _parse_networks(value)
    return value


def _validate_ledger(value: str) -> str:
    if value not in ("off", "on") and not value.startswith(("sqlite:///", "postgresql+psycopg://")):
        raise ValueError("Expected off, on, sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME")
    return value


def describe_errors(error: ValidationError) -> list[str]:
    """Describes the errors of settings, one line each, without any value that may be secret.

    Not shown are values of unknown settings, of keys and of the ledger's address; other addresses lose user info and query.
    """
    lines = []
    for detail in error.errors():
        name = f"{ENV_PREFIX}{'.'.join(map(str, detail['loc'])).upper()}"
        is_unknown = detail["type"] == "extra_forbidden"
        is_secret = is_unknown or "KEY" in name or name == f"{ENV_PREFIX}LEDGER"  # its address may hold a password
        value = (
            "a value that is not shown because it may be secret"
            if is_secret
            else redact_addresses(repr(detail["input"]))
        )
        message = "There is no such setting" if is_unknown else detail["msg"]
        similar = find_similar_name(str(detail["loc"][0]), Settings.model_fields) if is_unknown else None
        suggestion = "" if similar is None else f" Did you mean {ENV_PREFIX}{similar.upper()}?"
        lines.append(f"{name}: {message}; found {value}. Correct {'the name' if is_unknown else 'it'}.{suggestion}")
    return lines


class Settings(BaseModel):
    """The settings of the server and of the follower."""

    # Errors do not repeat values, because a mistyped setting may hold a password.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    host: IPv4Address | IPv6Address = Field(default=IPv4Address("127.0.0.1"), description="address to listen on")
    port: int = Field(default=3000, ge=1, le=65535, description="port to listen on")
    workers: int = Field(default=1, ge=1, le=256, description="processes that handle requests")

    keys: str = Field(
        default="", repr=False, description="hashes of API keys, as lines of a key file, separated by `;`"
    )
    keys_file: AbsolutePath | None = Field(
        default=None, description="file with hashes of API keys; it is reloaded when it changes"
    )
    without_keys: bool = Field(
        default=False,
        description="accept requests without API keys on a public address, because a proxy in front authenticates clients",
    )

    slot: AbsolutePath = Field(default=Path(".forecaster/slot"), description="folder with the deployed model")
    reload_s: float = Field(default=1.0, gt=0, description="seconds between checks of the slot")
    retry_s: float = Field(default=60.0, gt=0, description="seconds before a rejected bundle is tried again")

    registry: str | None = Field(
        default=None, description="address of the model registry; if unset, no registry is followed"
    )
    model: str | None = Field(default=None, description="name of the registered model to follow")
    pretrained: bool = Field(
        default=False,
        description="serve the pretrained network that ships with the package, for series of any frequency, instead of a "
        "registered model",
    )
    alias: str = Field(default="champion", description="alias of the version to follow")
    poll_s: float = Field(default=5.0, gt=0, description="seconds between requests to the registry")
    follower: bool = Field(
        default=True,
        description="follow the registry in a process of this server; false: another process does so for this slot",
    )
    keep: int = Field(default=3, ge=2, description="releases kept in the slot, including the deployed one")

    root_path: Annotated[str, AfterValidator(_validate_root_path)] = Field(
        default="",
        description="path below which a reverse proxy serves page and API, such as /forecasts; it may remove or keep the path",
    )
    proxies: Annotated[str, AfterValidator(_validate_proxies)] = Field(
        default="",
        description="addresses or networks of reverse proxies, separated by `;`; only their X-Forwarded-For and Forwarded "
        "headers name the client in the access log",
    )
    allowed_hosts: str = Field(
        default="",
        description="names in the Host header that are served, separated by `;`; `*` allows all. By default the loopback names "
        "if no API keys are configured, and all if they are",
    )
    max_connections: int = Field(default=1000, ge=1, description="open connections of one worker")
    max_body: int = Field(default=16 * 2**20, ge=1024, description="largest request body, in bytes")
    max_json: int = Field(
        default=4 * 2**20,
        ge=1024,
        description="largest JSON text, in bytes; NDJSON and Arrow, which are read in parts, may have up to `max_body`",
    )
    max_series: int = Field(default=1000, ge=1, description="most series in one request")
    max_history: int = Field(default=100_000, ge=1, description="longest history of one series, in steps")
    max_horizon: int = Field(default=1000, ge=1, le=100_000, description="longest horizon, in steps")
    max_values: int = Field(
        default=2_000_000,
        ge=1,
        description="most numbers and strings in the histories, covariates and channels of one request",
    )
    max_samples: int = Field(default=1000, ge=0, description="most samples of one series; 0 disables sampling")
    max_lines: int = Field(default=100_000, ge=1, description="most series in one NDJSON request, which is streamed")
    max_answer: int = Field(default=1_000_000, ge=1, description="most numbers in one response, including quantiles")

    state_keys: Annotated[str, AfterValidator(_validate_state_keys)] = Field(
        default="",
        repr=False,
        description="secret keys of states, separated by `;`: the first signs, all verify; if empty, a new key at each start",
    )
    max_state: int = Field(default=2**18, ge=1024, description="longest state of one series, in characters")
    max_scenarios: int = Field(default=100, ge=1, description="most scenarios in one request")

    ledger: Annotated[str, AfterValidator(_validate_ledger)] = Field(
        default="off",
        repr=False,
        description="where served forecasts are recorded: off, on (ledger.db in the slot folder), or a database address",
    )
    ledger_share: float = Field(default=1.0, ge=0, le=1, description="share of the forecasts that is recorded")
    ledger_days: float = Field(default=90.0, gt=0, description="days after which forecasts and actuals are deleted")
    ledger_clear_ids: bool = Field(
        default=False, description="record ids of series in clear text, in addition to their hash"
    )
    ledger_waiting: int = Field(
        default=10_000, ge=1, description="forecasts that may wait to be recorded; further ones are dropped"
    )
    adaptive: bool = Field(default=False, description="adapt the intervals to late actuals; needs a ledger")

    shadow: str = Field(
        default="",
        description="alias of a shadow version whose forecasts are only recorded in the ledger; empty: no shadow",
    )
    shadow_share: float = Field(
        default=0.1, ge=0, le=1, description="share of the recorded forecasts that the shadow also makes"
    )

    rollouts: int = Field(
        default=1, ge=1, le=64, description="large requests that one worker computes at the same time"
    )
    max_in_flight: int = Field(
        default=64, ge=1, description="small or large requests in progress in one worker before it responds 429"
    )
    timeout_s: float = Field(default=30.0, gt=0, description="seconds before a forecast is abandoned with 504")
    grace_s: int = Field(
        default=10, ge=1, description="seconds for requests in progress to finish when the server stops"
    )

    @field_validator("pretrained")
    @classmethod
    def _validate_single_model(cls, pretrained: bool, info: ValidationInfo) -> bool:
        if pretrained and info.data.get("model") is not None:
            raise ValueError(f"Expected either this setting or {ENV_PREFIX}MODEL, which names a registered model")
        return pretrained

    @property
    def proxy_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks of the reverse proxies."""
        return _parse_networks(self.proxies)

    @property
    def ledger_url(self) -> str | None:
        """The address of the ledger; None if the ledger is off."""
        if self.ledger in ("off", "on"):
            return f"sqlite:///{self.slot / 'ledger.db'}" if self.ledger == "on" else None
        return self.ledger

    @property
    def shadow_slot(self) -> Path | None:
        """The folder with the shadow model; None without a shadow alias or a ledger, and for the pretrained network."""
        has_shadow = self.shadow and self.ledger_url is not None and not self.pretrained
        return self.slot / "shadow" if has_shadow else None

    @property
    def follows_registry(self) -> bool:
        """Whether the settings name a registry and a model to follow."""
        return self.registry is not None and self.model is not None and not self.pretrained

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Reads the settings from an environment; raises ValidationError, also for an unknown FORECASTER_SERVING_* (a typo)."""
        fields = {
            name.removeprefix(ENV_PREFIX).lower(): value
            for name, value in environ.items()
            if name.startswith(ENV_PREFIX)
        }
        return cls.model_validate(fields)

    def with_state_key(self) -> Self:
        """Returns these settings, with a new random state key if there is none."""
        return (
            self if self.state_keys else self.model_copy(update={"state_keys": secrets.token_urlsafe(MIN_KEY_LENGTH)})
        )

    def to_environment(self) -> dict[str, str]:
        """Returns these settings as environment variables for a child process: the inverse of `from_environment`."""
        fields = self.model_dump(mode="json", exclude_none=True)
        return {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in fields.items()}
