"""The Kubernetes manifests fit together: volumes, secrets, settings, ports, probes, selectors and commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from forecaster.storage.secret_files import load_secret_files
from pipelines.scheduling.cron import CronSchedule
from serving.asgi.auth import build_keyring
from serving.routes import openapi
from serving.settings import ENV_PREFIX, Settings
from tests.docker.manifests import (
    DOCKER,
    IMAGES,
    Container,
    contains_no_secret,
    create_secrets,
    iterate_containers,
    list_known_variables,
    parse_command,
    read_config_maps,
    read_kustomization,
    read_objects,
    read_secrets,
)
from tests.optional_packages import import_optional

CONTAINERS = list(iterate_containers())
WRITTEN_BY_HAND = {"sql_url"}  # the address of the team's own data
each_container = pytest.mark.parametrize("one", CONTAINERS, ids=lambda one: one.owner)


def find_container(owner: str) -> Container:
    [container] = [one for one in CONTAINERS if one.owner == owner]
    return container


def test_the_kustomization_has_every_manifest() -> None:
    files = {f"kubernetes/{path.name}" for path in (DOCKER / "kubernetes").glob("*.yaml")}
    assert set(read_kustomization()["resources"]) == files - {"kubernetes/hospital.yaml"}
    assert len(CONTAINERS) == 5


def test_every_object_is_valid_for_kubernetes() -> None:
    validation = import_optional("kubernetes_validate")
    for document in read_objects().values():
        validation.validate(document, validation.latest_version(), strict=True)


@each_container
def test_every_mount_has_a_volume_and_every_volume_a_source(one: Container) -> None:
    claims = {name for kind, name in read_objects() if kind == "PersistentVolumeClaim"}
    templates = [
        claim["metadata"]["name"]
        for document in read_objects().values()
        for claim in (document.get("spec") or {}).get("volumeClaimTemplates", ())
        if one.owner == f"{document['kind']}/{document['metadata']['name']}"
    ]
    volumes = {volume["name"]: volume for volume in one.pod["volumes"]}
    mounts = one.container["volumeMounts"]
    assert {mount["name"] for mount in mounts} == set(volumes) | set(templates)
    assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims
        elif "secret" in volume:
            assert volume["secret"]["secretName"] in read_secrets()
        elif "configMap" in volume:
            assert volume["configMap"]["name"] in read_config_maps()
        else:
            assert "emptyDir" in volume


@each_container
def test_every_variable_is_known_and_every_secret_file_is_mounted(one: Container) -> None:
    assert set(one.environment) <= list_known_variables()
    assert contains_no_secret(one.environment)
    volumes = {volume["name"]: volume for volume in one.pod["volumes"]}
    mounted = {
        f"{mount['mountPath']}/{name}"
        for mount in one.container["volumeMounts"]
        if "secret" in volumes.get(mount["name"], {})
        for name in read_secrets()[volumes[mount["name"]]["secret"]["secretName"]]
    }
    files = {value for name, value in one.environment.items() if name.endswith("_FILE")}
    assert files <= mounted, "a file that no Secret provides"
    assert mounted - files <= {
        "/run/secrets/postgres/registry_database_password",  # read by databases.sh
        "/run/secrets/postgres/ledger_database_password",
    }, "a secret that nothing reads"


def test_every_secret_file_is_created(tmp_path: Path) -> None:
    created = set(create_secrets(tmp_path, database="postgres"))
    assert {name for names in read_secrets().values() for name in names} <= created | WRITTEN_BY_HAND


@each_container
def test_no_container_is_root_or_writes_to_its_image(one: Container) -> None:
    pod, container = one.pod["securityContext"], one.container["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert one.pod["automountServiceAccountToken"] is False
    paths = [mount["mountPath"] for mount in one.container["volumeMounts"] if not mount.get("readOnly")]
    assert "/tmp" in paths
    assert {"memory"} == set(one.container["resources"]["limits"]), "a CPU limit would slow requests down"


@each_container
def test_every_image_is_built_here_or_pinned(one: Container) -> None:
    tags = {image["name"]: image["newTag"] for image in read_kustomization()["images"]}
    assert set(tags) == set(IMAGES.values())
    name, _, tag = one.container["image"].partition(":")
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?(-\w+)?", tag or tags[name])


def test_services_probes_and_policies_name_ports_that_pods_have() -> None:
    routes = {route.path for route in openapi.ROUTES}
    services = {name: document["spec"] for (kind, name), document in read_objects().items() if kind == "Service"}
    assert set(services) == {"forecaster", "registry", "postgres"}
    for name, service in services.items():
        [one] = [one for one in CONTAINERS if one.labels == service["selector"]]
        [port] = one.container["ports"]
        [exposed] = service["ports"]
        assert exposed == {"port": port["containerPort"], "targetPort": port["name"]}
        policy = read_objects()["NetworkPolicy", name]["spec"]
        assert policy["podSelector"]["matchLabels"] == service["selector"]
        [rule] = policy["ingress"]
        assert rule["ports"] == [{"port": exposed["port"], "protocol": "TCP"}]
        for peer in rule["from"]:
            for expression in peer.get("podSelector", {}).get("matchExpressions", ()):
                assert set(expression["values"]) <= {each.labels["app"] for each in CONTAINERS}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            request = one.container.get(kind, {}).get("httpGet")
            if request is not None:
                assert request["port"] == port["name"]
                assert request["path"] in (routes if name == "forecaster" else {"/health"})
    serve = find_container("Deployment/forecaster").container
    assert serve["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert serve["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert read_objects()["NetworkPolicy", "deny-incoming"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}


def test_the_addresses_in_settings_are_those_of_services() -> None:
    for one in CONTAINERS:
        for name in ("MLFLOW_TRACKING_URI", "FORECASTER_SERVING_REGISTRY"):
            if name in one.environment:
                assert one.environment[name] == "http://registry:5000"
    hosts = find_container("Deployment/registry").environment["REGISTRY_ALLOWED_HOSTS"].split(",")
    assert "registry:5000" in hosts


def test_the_service_waits_for_a_model_with_settings_that_it_accepts(tmp_path: Path) -> None:
    one = find_container("Deployment/forecaster")
    command, arguments = parse_command(["serve", *one.container["args"]])
    assert (command, arguments["wait"]) == ("serve", True)
    root = str(arguments["root_options"].root)
    assert {"name": "slot", "mountPath": root} in one.container["volumeMounts"]
    create_secrets(tmp_path, database="postgres")
    environment = {
        name: value.replace("/run/secrets/forecaster", str(tmp_path)).replace(
            "/run/secrets/registry-client", str(tmp_path)
        )
        for name, value in one.environment.items()
    }
    load_secret_files(environment)
    settings = Settings.from_environment(environment)
    assert build_keyring(settings) is not None
    assert settings.follows_registry
    assert settings.ledger.startswith("postgresql+psycopg://ledger:")
    assert len(settings.state_keys) >= 32
    assert settings.slot == Path(root) / "slot"
    assert one.environment[f"{ENV_PREFIX}MODEL"] == read_specification()["name"]


def test_scaling_and_disruptions_concern_the_service() -> None:
    scaler = read_objects()["HorizontalPodAutoscaler", "forecaster"]["spec"]
    assert (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]) == ("Deployment", "forecaster")
    deployment = read_objects()["Deployment", "forecaster"]["spec"]
    assert "replicas" not in deployment, "each `kubectl apply` would undo what the autoscaler did"
    budget = read_objects()["PodDisruptionBudget", "forecaster"]["spec"]
    assert budget["selector"] == deployment["selector"]
    assert 0 < budget["minAvailable"] < scaler["minReplicas"]


@pytest.mark.parametrize("name", ["retrain", "monitor"])
def test_a_job_runs_a_known_command_and_one_at_a_time(name: str) -> None:
    job = read_objects()["CronJob", name]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    CronSchedule(job["schedule"], job.get("timeZone", "UTC"))
    one = find_container(f"CronJob/{name}")
    command, arguments = parse_command(one.container["args"])
    assert command == name
    assert {"name": "state", "mountPath": str(arguments["root_options"].root)} in one.container["volumeMounts"]
    [rule] = job["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3]
    assert rule["onExitCodes"]["containerName"] == one.container["name"]
    if name == "retrain":
        assert (arguments["if_needed"], arguments["trigger"]) == (True, "kubernetes")
        config = arguments["spec_options"].config
        [mount] = [each for each in one.container["volumeMounts"] if each["mountPath"] == str(config.parent)]
        assert config.name in read_config_maps()[mount["name"]]
    else:
        assert arguments["name"] == read_config_maps()["serving"]["FORECASTER_SERVING_MODEL"]


def read_specification() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DOCKER / "kubernetes/hospital.yaml").read_text())
    return content


def test_the_specification_is_that_of_the_example() -> None:
    assert read_specification() == yaml.safe_load((DOCKER.parent / "configs/hospital.yaml").read_text())
