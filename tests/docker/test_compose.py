"""The compose file of the stack fits together: services, secrets, settings, networks, the proxy and Prometheus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from forecaster.storage.secret_files import load_secret_files
from serving.asgi.auth import build_keyring
from serving.settings import Settings
from tests.docker.manifests import (
    DOCKER,
    DOCKERFILE,
    IMAGES,
    contains_no_secret,
    create_secrets,
    list_known_variables,
    list_shell_commands,
    parse_command,
    read_compose,
)

STACK = DOCKER / "stack"
SERVICES: dict[str, dict[str, Any]] = read_compose()["services"]
SECRETS = "/run/secrets/"
each_service = pytest.mark.parametrize("name", SERVICES)


def list_volumes(name: str) -> dict[str, tuple[str, bool]]:
    """Returns source, and whether it is read-only, of every mounted path of a service."""
    parts = [volume.split(":") for volume in SERVICES[name].get("volumes", ())]
    return {part[1]: (part[0], part[2:] == ["ro"]) for part in parts}


@each_service
def test_every_service_is_hardened_and_reachable_from_this_machine_only(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "ports" not in SERVICES["postgres"]


@each_service
def test_every_name_that_a_service_uses_is_declared(name: str) -> None:
    compose, service = read_compose(), SERVICES[name]
    assert set(service["networks"]) <= set(compose["networks"])
    for source, _ in list_volumes(name).values():
        assert (
            (STACK / source).exists()
            if source.startswith(".") and source != "./data"
            else (source == "./data" or source in compose["volumes"])
        )
    for dependency, condition in service.get("depends_on", {}).items():
        has_check = "healthcheck" in SERVICES[dependency] or dependency == "registry"  # a check of its image
        assert has_check or condition["condition"] == "service_started"
    used = {secret for each in SERVICES.values() for secret in each.get("secrets", ())}
    assert used == set(compose["secrets"])
    assert {volume for each in SERVICES for volume, _ in list_volumes(each).values() if "/" not in volume} == set(
        compose["volumes"]
    )


@each_service
def test_every_variable_is_known_and_every_secret_file_is_mounted(name: str) -> None:
    environment = SERVICES[name].get("environment", {})
    assert set(environment) <= list_known_variables()
    assert all(isinstance(value, str) for value in environment.values())
    assert contains_no_secret(environment)
    files = {value for variable, value in environment.items() if variable.endswith("_FILE")}
    mounted = {SECRETS + secret for secret in SERVICES[name].get("secrets", ())}
    read_elsewhere = {
        "postgres": {"registry_database_password", "ledger_database_password"},  # by databases.sh
        "prometheus": {"prometheus_key"},  # by prometheus.yaml
    }
    assert mounted == files | {SECRETS + secret for secret in read_elsewhere.get(name, ())}


def test_every_secret_is_created_and_in_no_image_and_no_commit(tmp_path: Path) -> None:
    created = create_secrets(tmp_path, database="postgres")
    for name, source in read_compose()["secrets"].items():
        assert source["file"] == f"../secrets/{name}"
        assert name in created
    assert "docker/secrets/" in (DOCKER.parent / ".gitignore").read_text().splitlines()
    assert "secrets" not in DOCKERFILE.replace("create_secrets", "")


@each_service
def test_every_image_is_built_here_or_pinned(name: str) -> None:
    image, build = SERVICES[name]["image"], SERVICES[name].get("build")
    if build is not None:
        assert IMAGES[build["target"]] == image
        assert (STACK / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
        assert f" AS {build['target']}\n" in DOCKERFILE
    elif image in IMAGES.values():
        assert any(each["image"] == image and "build" in each for each in SERVICES.values())
    else:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", image)


def load_settings(name: str, secrets: Path) -> Settings:
    environment = {
        variable: value.replace(SECRETS, f"{secrets}/") for variable, value in SERVICES[name]["environment"].items()
    }
    load_secret_files(environment)
    return Settings.from_environment(environment)


def test_replicas_share_the_slot_of_one_follower_and_the_keys_of_states(tmp_path: Path) -> None:
    create_secrets(tmp_path, database="postgres")
    replica, follower = load_settings("forecaster", tmp_path), load_settings("follower", tmp_path)
    assert SERVICES["forecaster"]["deploy"]["replicas"] == 2
    assert not replica.follower
    assert build_keyring(replica) is not None
    assert len(replica.state_keys) >= 32
    assert replica.ledger_url == (tmp_path / "ledger").read_text().strip()
    assert (replica.slot, replica.model) == (follower.slot, follower.model)
    assert follower.follows_registry
    assert SERVICES["follower"]["entrypoint"][:2] == SERVICES["forecaster"]["entrypoint"][:2] == ["python", "-m"]
    mounts = {name: list_volumes(name)["/var/lib/forecaster"] for name in ("follower", "forecaster")}
    assert mounts == {"follower": ("models", False), "forecaster": ("models", True)}


def test_every_command_is_one_of_the_command_line() -> None:
    scheduler, monitor = SERVICES["scheduler"], SERVICES["monitor"]
    command, arguments = parse_command(scheduler["command"])
    assert command == "run"
    assert list_volumes("scheduler")[str(arguments["root_options"].root)] == ("state", False)
    assert parse_command(scheduler["healthcheck"]["test"][2:])[0] == "status"
    [call] = list_shell_commands(monitor["command"][0])
    command, arguments = parse_command(call)
    assert command == "monitor"
    [folder] = [
        option.partition("=")[2] for option in SERVICES["node-exporter"]["command"] if "textfile.directory" in option
    ]
    target = list_volumes("node-exporter")[str(Path(folder).parent)][0]
    assert target == list_volumes("monitor")[str(arguments["root_options"].root)][0]
    assert arguments["prometheus"].parent.relative_to(arguments["root_options"].root) == Path(folder).relative_to(
        "/state"
    )


def test_the_proxy_passes_on_what_the_service_accepts() -> None:
    text = (STACK / "nginx/nginx.conf").read_text()
    fields, settings = Settings.model_fields, dict(re.findall(r"^\s*(\w+) ([^;{]+);", text, flags=re.MULTILINE))
    assert int(settings["client_max_body_size"].removesuffix("m")) * 2**20 == fields["max_body"].default
    assert float(settings["proxy_read_timeout"].removesuffix("s")) > fields["timeout_s"].default
    assert f"set $replicas forecaster:{fields['port'].default};" in text
    assert text.count("{") == text.count("}")
    [published] = SERVICES["proxy"]["ports"]
    assert published.endswith(f":{settings['listen']}")
    assert "forecaster" in SERVICES
    shared = set(SERVICES["proxy"]["networks"]) & set(SERVICES["forecaster"]["networks"])
    assert shared == {"proxied"}
    [subnet] = read_compose()["networks"]["proxied"]["ipam"]["config"]
    assert SERVICES["forecaster"]["environment"]["FORECASTER_SERVING_PROXIES"] == subnet["subnet"]


def test_prometheus_scrapes_services_with_a_key_that_may_observe(tmp_path: Path) -> None:
    configuration = yaml.safe_load((STACK / "prometheus/prometheus.yaml").read_text())
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    [discovery] = jobs["forecaster"]["dns_sd_configs"]
    assert (discovery["names"], discovery["port"]) == (["forecaster"], Settings.model_fields["port"].default)
    [target] = jobs["monitor"]["static_configs"][0]["targets"]
    assert target.partition(":")[0] in SERVICES
    assert jobs["forecaster"]["authorization"] == {"credentials_file": f"{SECRETS}prometheus_key"}
    create_secrets(tmp_path, database="postgres")
    keyring = build_keyring(Settings(keys_file=tmp_path / "api_keys"))
    assert keyring is not None
    key = (tmp_path / "prometheus_key").read_bytes().strip()
    assert keyring.authorize("observe", {b"authorization": b"Bearer " + key}) == "prometheus"
    for path in configuration["rule_files"]:
        assert (STACK / "prometheus" / path).exists()
