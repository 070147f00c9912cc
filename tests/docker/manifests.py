"""Reads the files that a team deploys, and lists what they refer to."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml

from forecaster.storage.secret_files import FILE_SUFFIX, SECRET_VARIABLES
from pipelines.cli import app
from serving.settings import ENV_PREFIX, Settings

DOCKER = Path(__file__).parents[2] / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
IMAGES = {"serve": "forecaster", "train": "forecaster-train", "registry": "forecaster-registry"}
"""The image of every target of the Dockerfile."""
# Variables of other programs that the manifests set.
FOREIGN_VARIABLES = {
    "BENTOML_DO_NOT_TRACK",
    "DO_NOT_TRACK",
    "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES",
    "GF_ANALYTICS_CHECK_FOR_UPDATES",
    "GF_ANALYTICS_REPORTING_ENABLED",
    "GF_SECURITY_ADMIN_PASSWORD__FILE",
    "GF_USERS_ALLOW_SIGN_UP",
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "PGDATA",
    "POSTGRES_INITDB_ARGS",
    "POSTGRES_PASSWORD_FILE",
    "SECRETS",
}


class Container(NamedTuple):
    """A container of a pod, with the pod's volumes and the object that it belongs to."""

    owner: str
    labels: Mapping[str, str]
    pod: dict[str, Any]
    container: dict[str, Any]
    environment: dict[str, str]


def parse_command(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Returns the command and its arguments, by the command line's own parser; raises if it does not know them."""
    command, bound, rest = app.parse_args(list(words), exit_on_error=False, print_error=False)
    assert not rest
    return command.__name__, dict(bound.arguments)


def list_known_variables() -> set[str]:
    """Returns every variable that a manifest may set."""
    script = (DOCKER / "start_registry.py").read_text()
    return (
        {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
        | {f"{name}{FILE_SUFFIX}" for name in SECRET_VARIABLES}
        | {name for name in re.findall(r"\"(REGISTRY_[A-Z_]+)\"|'(REGISTRY_[A-Z_]+)'", script) for name in name if name}
        | FOREIGN_VARIABLES
    )


def contains_no_secret(environment: Mapping[str, str]) -> bool:
    """Whether no value is a password or a key: those are in files."""
    secret = re.compile(r"PASSWORD$|_KEY$|TOKEN$|STATE_KEYS$|LEDGER$|SQL_URL$")
    return not any(
        secret.search(name) or re.search(r"://[^/]*:[^/]*@", str(value)) for name, value in environment.items()
    )


@cache
def read_kustomization() -> dict[str, Any]:
    """Returns docker/kustomization.yaml."""
    content: dict[str, Any] = yaml.safe_load((DOCKER / "kustomization.yaml").read_text())
    return content


@cache
def read_objects() -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the Kubernetes objects by kind and name."""
    documents = [
        document
        for path in read_kustomization()["resources"]
        for document in yaml.safe_load_all((DOCKER / path).read_text())
    ]
    objects = {(document["kind"], document["metadata"]["name"]): document for document in documents}
    assert len(objects) == len(documents), "two objects have one name"
    return objects


@cache
def read_config_maps() -> dict[str, dict[str, str]]:
    """Returns the generated ConfigMaps by name: their literals, and the content of their files."""
    return {
        generator["name"]: {
            **dict(literal.split("=", 1) for literal in generator.get("literals", ())),
            **{Path(path).name: (DOCKER / path).read_text() for path in generator.get("files", ())},
        }
        for generator in read_kustomization()["configMapGenerator"]
    }


@cache
def read_secrets() -> dict[str, list[str]]:
    """Returns the file names in each generated Secret."""
    return {
        generator["name"]: [Path(path).name for path in generator["files"]]
        for generator in read_kustomization()["secretGenerator"]
    }


def iterate_containers() -> Iterator[Container]:
    """Yields every container of every pod."""
    for (kind, name), document in read_objects().items():
        spec = document.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template") if isinstance(spec, dict) else None
        if template is None:
            continue
        for container in template["spec"]["containers"]:
            environment = {}
            for source in container.get("envFrom", ()):
                environment |= read_config_maps()[source["configMapRef"]["name"]]
            environment |= {variable["name"]: variable["value"] for variable in container.get("env", ())}
            yield Container(f"{kind}/{name}", template["metadata"]["labels"], template["spec"], container, environment)


@cache
def read_compose() -> dict[str, Any]:
    """Returns docker/stack/compose.yaml, with the defaults of its variables."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DOCKER / "stack/compose.yaml").read_text())
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def list_shell_commands(script: str) -> list[list[str]]:
    """Returns the arguments of each call of `forecaster` in a shell script."""
    calls = re.findall(r"\bforecaster ([^;]+);", script.replace("$$", "$"))
    return [shlex.split(call) for call in calls]


def load_script(name: str) -> ModuleType:
    """Loads a script of docker/, which is no package: a package of this name may be installed."""
    spec = spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


create_secrets: Callable[..., list[str]] = load_script("create_secrets").create_secrets
