"""The command `forecaster serve`: starts the service."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forecaster.errors import InputError, RegistryError, suggest_name
from forecaster.installation import describe_missing_module
from pipelines.commands.console import warn
from pipelines.commands.options import RootOptions
from pipelines.settings import SERVING_PREFIX, Root

_ROOT_OPTIONS = RootOptions()
_DEFAULT_ALIAS = "champion"  # the alias that the service follows by default
_MAX_PORT = 65535
_PRETRAINED_NAME = "base"
_PRETRAINED_NOTE = (
    "serving 'base', the pretrained network: it forecasts series of any frequency, and none of your data trained it. To serve a "
    "registered model, name it: forecaster serve NAME"
)
_MAX_NAMES = 20  # registered models that an error names


def serve(
    model: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_MODEL")] = None,
    *,
    host: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_HOST")] = None,
    port: Annotated[int | None, Parameter(env_var="FORECASTER_SERVING_PORT")] = None,
    keys: Annotated[Path | None, Parameter(env_var="FORECASTER_SERVING_KEYS_FILE")] = None,
    root_path: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_ROOT_PATH")] = None,
    wait: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Serves the champion of a registered model over HTTP, and switches to a new champion when one is promoted.

    Without a model it serves `base`, the pretrained network that ships with the package: series of any frequency, no training.
    A blend with statistical models also needs the extra 'baselines'; without it the service rejects the blend.

    Parameters
    ----------
    model
        The registered model; by default the model that was served last from this root, or else `base`.
    host
        Address to listen on; by default 127.0.0.1.
    port
        Port to listen on; by default 3000.
    keys
        File with the hashes of API keys, as written by `key new`; requests without one of these keys are rejected.
    root_path
        Path below which a reverse proxy serves the page and the API, such as /forecasts; by default none.
    wait
        Start even if the registry has no champion of this name yet, or cannot be reached. Until there is one, the service logs
        why it waits, and `/readyz` responds with 503. Without this option a name that is not registered is an error.
    """
    from pipelines.settings import build_serving_environment

    if find_spec("bentoml") is None:
        raise describe_missing_module("bentoml", purpose="a service")
    if port is not None and not 1 <= port <= _MAX_PORT:
        raise InputError(
            f"Expected --port (or FORECASTER_SERVING_PORT) from 1 to {_MAX_PORT}; found {port}. Choose another port.",
            where="port",
        )
    root = root_options.open_root()
    environment = build_serving_environment(
        os.environ, root, model=model, host=host, port=port, keys=keys, root_path=root_path
    )
    if _is_pretrained(model, environment, root, wait=wait):
        environment = build_serving_environment(
            os.environ, root, model=None, host=host, port=port, keys=keys, root_path=root_path, pretrained=True
        )
        warn(_PRETRAINED_NOTE)
    elif model is not None and not wait:
        _require_model(model, environment)
    # Run by name rather than imported: serving and pipelines meet only in the registry.
    os.execve(sys.executable, [sys.executable, "-m", "serving"], environment)  # noqa: S606


def _is_pretrained(model: str | None, environment: Mapping[str, str], root: Root, *, wait: bool) -> bool:
    """Returns whether the pretrained network is served: by its name if no registered model has it, or if nothing was ever served.

    A slot of another place is filled by another process, so the service waits for that. Raises RegistryError.
    """
    slot = Path(environment[f"{SERVING_PREFIX}SLOT"])
    if model is None:
        return slot == root.slot and not os.path.lexists(slot / "current")
    if model != _PRETRAINED_NAME or wait or _read_served_name(slot) == model:
        return False
    return model not in _read_aliases(environment[f"{SERVING_PREFIX}REGISTRY"])


def _require_model(name: str, environment: Mapping[str, str]) -> None:
    """Raises InputError if the registry has no such model; a model that the slot has already needs no registry."""
    slot, address = (environment[f"{SERVING_PREFIX}{setting}"] for setting in ("SLOT", "REGISTRY"))
    served = _read_served_name(Path(slot))
    if served == name:
        return
    try:
        aliases_by_model = _read_aliases(address)
    except RegistryError as error:
        if served is None:
            raise RegistryError(
                f"{error.message} To start the service before the registry responds, add --wait.", where=error.where
            ) from error
        warn(f"'{served}' is served until the registry responds; {error.message}")
        return
    validate_model_name(name, environment.get(f"{SERVING_PREFIX}ALIAS", _DEFAULT_ALIAS), aliases_by_model)


def validate_model_name(name: str, alias: str, aliases_by_model: Mapping[str, Mapping[str, str]]) -> None:
    """Raises InputError, which lists the registered models, unless one has this name and a version with this alias."""
    if name not in aliases_by_model:
        names = sorted(aliases_by_model)
        shown = ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if names[_MAX_NAMES:] else "")
        raise InputError(
            f"Expected the name of a registered model; found {name!r}. The registry has {shown or 'no models'}."
            f"{suggest_name(name, names)} Register a model with `forecaster retrain` or `forecaster register`, or wait for it "
            "with --wait.",
            where="model",
        )
    if alias not in aliases_by_model[name]:
        existing = ", ".join(sorted(aliases_by_model[name])) or "none"
        raise InputError(
            f"Expected a version of {name!r} with the alias {alias!r}; its aliases are: {existing}. Promote one with "
            f"`forecaster promote {name}`, or wait for it with --wait.",
            where="model",
        )


def _read_served_name(slot: Path) -> str | None:
    """Returns the name of the model in the slot; None if there is none, or it cannot be read."""
    try:
        return str(json.loads((slot / "current" / "release.json").read_text())["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_aliases(address: str) -> dict[str, Mapping[str, str]]:
    """Returns the aliases of every registered model; a database that does not exist yet has none. Raises RegistryError."""
    if address.startswith("sqlite:///") and not Path(address.removeprefix("sqlite:///")).exists():
        return {}  # opening it would create it, which takes seconds
    from forecaster.registry.registry import Registry

    return {model.name: model.aliases for model in Registry(address).list_models()}
