"""The service of a Bento that contains its model: no registry, no follower, one release that never changes.

`forecaster package` writes a `service.py` that uses it; a team may write its own:

    @bentoml.service(name="hospital", service_class=PackagedService)
    class Hospital:
        model = bentoml.models.BentoModel("hospital:latest")

The model in BentoML's store is a slot that nobody replaces: `current/release.json` and `current/bundle/`.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import bentoml
import click
from pydantic import ValidationError
from starlette.types import ASGIApp

from forecaster.storage.secret_files import InvalidSecret, load_secret_files
from serving.asgi.auth import InvalidKeys, build_keyring
from serving.services.application import ApplicationService, start_application
from serving.settings import ENV_PREFIX, MIN_KEY_LENGTH, Settings, describe_errors

_FOREIGN_SETTINGS = (
    "slot",
    "registry",
    "model",
    "pretrained",
    "alias",
    "shadow",
)  # of a server that follows a registry
_STATE_KEYS_VARIABLE = f"{ENV_PREFIX}STATE_KEYS"


class InvalidSettings(ValueError):
    """Settings that a packaged service does not have."""


class PackagedService(ApplicationService):
    """A BentoML service that serves the model in its Bento."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        with suppress(
            InvalidSecret, ValidationError
        ):  # reported by `validate_deployment`; a Bento is also built and listed
            load_secret_files(os.environ)
            settings = Settings.from_environment(os.environ)
            self.config.setdefault("workers", settings.workers)
            # BentoML's own default is every address of the machine.
            self.config.setdefault("http", {"host": str(settings.host), "port": settings.port})
        self.inner.validate_deployment = _create_deployment_hook()

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Returns the application of one worker, with the model of the Bento as its slot."""
        settings = read_settings(os.environ, host=_find_bound_host())
        return start_application(settings.model_copy(update={"slot": self._find_slot()}))

    def _find_slot(self) -> Path:
        """Returns the folder of the only model: in the Bento if it contains models, otherwise in BentoML's store."""
        models = self.models if self.bento is None else [info.to_model() for info in self.bento.info.all_models]
        if len(models) != 1:
            raise bentoml.exceptions.BentoMLConfigException(
                f"Expected one model in the service {self.name!r}; found {len(models)}. "
                'Give it one attribute: model = bentoml.models.BentoModel("NAME:VERSION").'
            )
        return Path(models[0].resolve().path)


def read_settings(environ: Mapping[str, str], *, host: str) -> Settings:
    """Reads the settings of a packaged service.

    Args:
        environ: The environment.
        host: The address that the server listens on, which BentoML chooses: on one that other machines can reach it needs keys.

    Raises:
        InvalidSettings: A setting refers to a registry or a slot, or has an invalid value.
        InvalidKeys: The server would accept requests without a key from other machines.
    """
    try:
        settings = Settings.from_environment(environ)
    except ValidationError as error:
        raise InvalidSettings("\n".join(describe_errors(error))) from error
    foreign = [f"{ENV_PREFIX}{name.upper()}" for name in _FOREIGN_SETTINGS if name in settings.model_fields_set]
    if foreign:
        raise InvalidSettings(
            f"Expected no settings of a registry, because a Bento serves the model that it contains; found {', '.join(foreign)}. "
            "Remove them, or follow a registry with: forecaster serve NAME."
        )
    if settings.ledger == "on":
        raise InvalidSettings(
            f"Expected the address of a ledger, because a Bento has no folder that outlives it; found {ENV_PREFIX}LEDGER=on. "
            "Set it to sqlite:////PATH/ledger.db or postgresql+psycopg://USER:PASSWORD@HOST/NAME."
        )
    settings = settings.model_copy(update={"host": ip_address(host)})
    build_keyring(settings)
    return settings


def _create_deployment_hook() -> Callable[[], None]:
    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    def validate_deployment() -> None:
        """Ends the server before its workers start, which BentoML would restart for ever."""
        try:
            load_secret_files(os.environ)
            read_settings(os.environ, host=_find_configured_host())
        except (InvalidSecret, InvalidKeys, InvalidSettings) as error:
            for line in str(error).splitlines():
                sys.stderr.write(f"forecaster: {line}\n")
            sys.exit(2)
        # The workers of one server accept each other's states.
        os.environ.setdefault(_STATE_KEYS_VARIABLE, secrets.token_urlsafe(MIN_KEY_LENGTH))

    hook: Callable[[], None] = validate_deployment
    return hook


def _find_configured_host() -> str:
    """Returns the address that `bentoml serve` was asked to listen on, or that of the configuration."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    return str(_command_option("host") or BentoMLContainer.http.host.get())


def _find_bound_host() -> str:
    """Returns the address of the socket of this worker; one that other machines can reach if BentoML passed none."""
    descriptor = _command_option("fd")
    if descriptor is None:
        return "0.0.0.0"  # noqa: S104  # not an address to listen on: it makes keys necessary
    with socket.socket(fileno=os.dup(int(descriptor))) as listener:
        is_local = listener.family == socket.AF_UNIX
        return "127.0.0.1" if is_local else str(listener.getsockname()[0])


def _command_option(name: str) -> Any:
    context = click.get_current_context(silent=True)
    return None if context is None else context.params.get(name)
