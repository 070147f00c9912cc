"""A registered model becomes a Bento that BentoML serves without the registry, and its own client calls it."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import httpx
import pytest
import yaml

from forecaster.registry.registry import CHAMPION, Registry, create_client
from pipelines.promotion.promote import register_bundle
from pipelines.settings import Root
from tests.serving.test_service import free_port, save_random_model
from tests.system.processes import CHECKOUT, run_forecaster, start_process, wait_until

pytestmark = pytest.mark.nightly

HISTORY = {"id": "a", "start": "2026-01-01T00:00:00Z", "freq": "h", "y": [float(value % 5) for value in range(24)]}


def http_status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0


def test_a_registered_model_is_packaged_and_served_without_its_registry(tmp_path: Path) -> None:
    root, home = Root(tmp_path / "root"), tmp_path / "bentoml"
    root.path.mkdir()
    home.mkdir()
    digest = save_random_model(tmp_path / "bundle", seed=1)
    client = create_client(root.store_uri)
    run = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path / "store")))
    version = register_bundle(tmp_path / "bundle", root, run_id=run.info.run_id)
    Registry(root.store_uri).set_alias(version, CHAMPION)
    environment = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true"}

    result = run_forecaster(
        "package", "tiny", "--root", root.path, "--folder", tmp_path / "folder", folder=home, **environment
    )  # from another folder, outside of which BentoML reads no files
    assert result.returncode == 0, result.stderr
    assert "bentoml serve tiny:latest" in result.stdout
    bento = home / "bentos" / "tiny" / (home / "bentos" / "tiny" / "latest").read_text()
    description = yaml.safe_load((bento / "bento.yaml").read_text())
    assert description["labels"] == {"name": "tiny", "version": "1", "digest": digest}
    assert {route["name"] for route in description["schema"]["routes"]} >= {"forecast", "explain"}
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert "ENV BENTOML_HOST=$BENTOML_HOST" in dockerfile
    assert "pip install -r $BENTO_PATH/env/python/requirements.txt" in dockerfile
    assert "torch" not in (bento / "env" / "python" / "requirements.txt").read_text()
    assert (bento / "README.md").read_text() == "# Tiny\n"

    shutil.rmtree(root.path)
    port = free_port()
    command = ["-m", "bentoml", "serve", "tiny:latest", "--port", str(port)]
    # Without the checkout on the path the Bento uses the packages that it contains.
    with start_process(command, tmp_path, **environment, PYTHONPATH="") as process:
        wait_until(lambda: process.poll() is not None or http_status(f"http://127.0.0.1:{port}/readyz") == 200)
        response = httpx.post(f"http://127.0.0.1:{port}/v1/forecast", json={"series": [HISTORY], "horizon": 3}).json()
        assert response["model"] == {"name": "tiny", "version": "1", "digest": digest}
        assert len(response["forecasts"][0]["mean"]) == 3
        assert httpx.get(f"http://127.0.0.1:{port}/docs/swagger-ui.css").status_code == 200
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    open_command = [*command, "--host", "0.0.0.0"]
    with start_process(open_command, tmp_path, log=tmp_path / "open.log", **environment, PYTHONPATH="") as process:
        assert process.wait(60) == 2, "an address that other machines can reach needs keys"
    assert "Expected keys" in (tmp_path / "open.log").read_text()


def test_the_folder_can_be_built_again(tmp_path: Path) -> None:
    """A team edits the folder and builds it with BentoML's own command."""
    home = tmp_path / "bentoml"
    home.mkdir()
    save_random_model(tmp_path / "bundle", seed=1)
    environment = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true", "PYTHONPATH": ""}
    folder = tmp_path / "folder"
    packaged = run_forecaster(
        "package",
        tmp_path / "bundle",
        "--folder",
        folder,
        folder=tmp_path,
        **{**environment, "PYTHONPATH": str(CHECKOUT)},
    )
    assert packaged.returncode == 0, packaged.stderr
    with start_process(["-m", "bentoml", "build"], folder, log=tmp_path / "build.log", **environment) as process:
        assert process.wait(60) == 0, (tmp_path / "build.log").read_text()
    assert len([bento for bento in (home / "bentos" / "tiny").iterdir() if bento.is_dir()]) == 2
