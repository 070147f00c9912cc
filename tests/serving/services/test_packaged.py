"""The service of a Bento: its settings, its slot, and the options that it gives to BentoML."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import bentoml
import pytest

from serving.asgi import auth
from serving.routes.openapi import ROUTES
from serving.services import packaged
from serving.services.packaged import InvalidSettings, PackagedService
from tests.serving.conftest import MakeClient, publish_stub, series_payload


def create_service(**attributes: Any) -> PackagedService:
    decorate = bentoml.service(name="hospital", service_class=PackagedService)
    service: PackagedService = decorate(type("Hospital", (), attributes))
    return service


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("MODEL", "hospital", "FORECASTER_SERVING_MODEL"),
        ("REGISTRY", "sqlite:///mlflow.db", "FORECASTER_SERVING_REGISTRY"),
        ("SLOT", "slot", "FORECASTER_SERVING_SLOT"),
        ("SHADOW", "challenger", "FORECASTER_SERVING_SHADOW"),
        ("LEDGER", "on", "sqlite:////PATH/ledger.db"),
        ("PROT", "3000", "FORECASTER_SERVING_PROT"),
    ],
)
def test_settings_that_a_bento_does_not_have_are_rejected(variable: str, value: str, named: str) -> None:
    with pytest.raises(InvalidSettings, match=named):
        packaged.read_settings({f"FORECASTER_SERVING_{variable}": value}, host="127.0.0.1")


def test_an_address_that_other_machines_can_reach_needs_keys(tmp_path: Path) -> None:
    key_file = tmp_path / "keys"
    auth.create_key("shop", ["read"], key_file)
    with pytest.raises(auth.InvalidKeys, match="FORECASTER_SERVING_KEYS_FILE"):
        packaged.read_settings({}, host="0.0.0.0")
    # The address is that of the socket, whatever a setting says.
    with pytest.raises(auth.InvalidKeys, match=r"10\.0\.0\.5"):
        packaged.read_settings({"FORECASTER_SERVING_HOST": "127.0.0.1"}, host="10.0.0.5")
    settings = packaged.read_settings({"FORECASTER_SERVING_KEYS_FILE": str(key_file)}, host="0.0.0.0")
    assert (str(settings.host), auth.find_allowed_hosts(settings)) == ("0.0.0.0", None)
    settings = packaged.read_settings({}, host="127.0.0.1")
    assert auth.find_allowed_hosts(settings) == auth.LOOPBACK_HOSTS


def test_without_a_socket_from_bentoml_keys_are_needed() -> None:
    assert packaged._find_bound_host() == "0.0.0.0"


def test_the_server_ends_before_its_workers_start_if_a_setting_is_invalid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = create_service()
    assert service.inner.validate_deployment.__bentoml_deployment_hook__ is True
    monkeypatch.setenv("FORECASTER_SERVING_MODEL", "hospital")
    with pytest.raises(SystemExit, match="2"):
        service.inner.validate_deployment()
    assert capsys.readouterr().err.startswith("forecaster: Expected no settings of a registry")


def test_workers_of_one_server_share_a_state_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "_find_configured_host", lambda: "127.0.0.1")
    monkeypatch.setattr(packaged.os, "environ", environment := {"PATH": "/bin"})
    create_service().inner.validate_deployment()
    assert len(environment["FORECASTER_SERVING_STATE_KEYS"]) >= 32


def test_by_default_only_this_machine_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert create_service().config == {"workers": 1, "http": {"host": "127.0.0.1", "port": 3000}}
    monkeypatch.setenv("FORECASTER_SERVING_WORKERS", "3")
    monkeypatch.setenv("FORECASTER_SERVING_HOST", "::1")
    assert create_service().config == {"workers": 3, "http": {"host": "::1", "port": 3000}}


def test_a_service_without_a_model_says_how_to_name_one() -> None:
    with pytest.raises(bentoml.exceptions.BentoMLException, match=r"found 0.*BentoModel"):
        create_service()._find_slot()


def test_bentoml_learns_the_routes_that_are_served() -> None:
    service = create_service()
    assert service.schema()["name"] == "hospital"
    assert {route["route"] for route in service.schema()["routes"]} <= set(service.openapi_spec["paths"])
    assert set(service.openapi_spec["paths"]) == {route.path for route in ROUTES}


def test_a_packaged_model_is_served_as_a_slot(slot_folder: Path, make_client: MakeClient, tmp_path: Path) -> None:
    release = publish_stub(tmp_path / "published")
    shutil.copytree((tmp_path / "published" / "current").resolve(), slot_folder / "current")
    slot_folder.chmod(0o500)  # workers write nothing into it
    client = make_client()
    response = client.post("/v1/forecast", json={"series": [series_payload()], "horizon": 2})
    assert (response.status_code, response.json()["model"]["digest"]) == (200, release.digest)
    assert packaged_bundle(slot_folder, release).joinpath("manifest.json").exists()


def packaged_bundle(slot: Path, release: Any) -> Path:
    from serving.deployment.releases import bundle_path

    return bundle_path(slot, release)
