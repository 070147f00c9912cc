"""The service as docker/compose.yaml starts it: its command, its environment, a registry over HTTP, and only the packages
that its image has."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from importlib.metadata import files, packages_distributions
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.utils import canonicalize_name

from forecaster.bundle import artifact
from pipelines.promotion.promote import promote, register
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.training.train import train
from serving.asgi.auth import keyring
from serving.settings import Settings
from tests.factories import make_forecaster, make_spec
from tests.pipelines.conftest import small
from tests.system.processes import CHECKOUT, free_port, started, wait_until

COMPOSE: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker" / "compose.yaml").read_text())["services"]
DOCKERFILE = (CHECKOUT / "docker" / "Dockerfile").read_text()

# Read by every Python that is started with it on its path: as if the other packages were not installed.
_ONLY_THE_IMAGE = """
import sys
from importlib.machinery import PathFinder
refused = set({refused})
class OnlyTheImage(PathFinder):
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in refused or name.partition(".")[0] in refused:
            return None
        return PathFinder.find_spec(name, path, target)
sys.meta_path = [OnlyTheImage if finder is PathFinder else finder for finder in sys.meta_path]
"""


def not_in_the_image() -> set[str]:
    """The modules of this environment that requirements/lock-serve.txt does not install."""
    lock = (CHECKOUT / "requirements" / "lock-serve.txt").read_text()
    locked = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    ours = {"forecaster", "pipelines", "serving"}
    others = {
        module
        for module, homes in packages_distributions().items()
        if module not in ours and not any(canonicalize_name(home) in locked for home in homes)
    }
    return others | _modules("mlflow") - _modules("mlflow-skinny")


def _modules(distribution: str) -> set[str]:
    paths = [str(path) for path in files(distribution) or []]
    return {path[:-3].replace("/", ".").removesuffix(".__init__") for path in paths if path.endswith(".py")}


@pytest.fixture
def image(tmp_path: Path) -> str:
    """A PYTHONPATH on which there is what the image has."""
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_ONLY_THE_IMAGE.format(refused=sorted(not_in_the_image())))
    return f"{folder}:{CHECKOUT}"


def composed(service: str, **changed: str) -> dict[str, str]:
    """The environment of a service where the user's own sets nothing."""
    told = COMPOSE[service]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*)}", r"\1", value) for name, value in told.items()} | changed


def test_the_image_lacks_what_only_training_needs() -> None:
    lacking = not_in_the_image()
    assert {"pytorch_lightning", "matplotlib", "statsforecast", "alembic"} <= lacking
    assert not {"torch", "pandas", "mlflow", "cyclopts", "bentoml", "yaml", "sqlalchemy", "psycopg"} & lacking


def test_the_container_serves_the_model_that_its_environment_names() -> None:
    assert json.loads(DOCKERFILE.split("ENTRYPOINT ")[1]) == ["forecaster", "serve"]
    environment = composed("forecaster")
    assert environment["FORECASTER_SERVING_MODEL"] == "hospital", "the demo's"
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert environment["FORECASTER_SERVING_HOST"] == "0.0.0.0"
    assert environment["FORECASTER_SERVING_LEDGER"] == "on"
    settings = {name: value for name, value in environment.items() if name.startswith("FORECASTER_SERVING_")}
    assert keyring(Settings.read(settings)) is None, "it starts, for it says that something in front asks who comes"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's
def test_the_composed_services_serve_what_is_promoted(
    migrated: Path, data: Data, tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, home = tmp_path / "mlflow", tmp_path / "home"
    store.mkdir()
    home.mkdir()
    shutil.copy(migrated / "mlflow.db", store)
    ports = {"registry": free_port(), "service": free_port()}
    address = f"http://127.0.0.1:{ports['registry']}"
    replaced = {"/var/lib/mlflow": str(store), "0.0.0.0": "127.0.0.1", "5000": str(ports["registry"])}
    server = [_replace(part, replaced) for part in COMPOSE["mlflow"]["command"]]
    environment = composed(
        "forecaster",
        MLFLOW_TRACKING_URI=address,
        FORECASTER_SERVING_HOST="127.0.0.1",
        FORECASTER_SERVING_PORT=str(ports["service"]),
        FORECASTER_SERVING_POLL_S="0.2",
        HOME=str(home),
        PYTHONPATH=image,
    )
    ready = f"http://127.0.0.1:{ports['service']}/readyz"
    with (
        started(["-m", *server], tmp_path, log=tmp_path / "mlflow.log", **composed("mlflow")) as registry,
        started(["-m", "pipelines.cli", "serve"], home, log=tmp_path / "serve.log", **environment) as service,
    ):
        wait_until(lambda: _status(f"{address}/health") == 200 or registry.poll() is not None, pause=0.1)
        root = Root(tmp_path / "root", address)
        version = register(train(data, small(name="hospital"), root).bundle, root)
        promote("hospital", root, number=version.number, force=True)
        wait_until(lambda: _status(ready) == 200 or service.poll() is not None, pause=0.1)
        assert service.poll() is None, (tmp_path / "serve.log").read_text()
        named = {"name": "hospital", "version": "1", "digest": version.digest}
        assert httpx.get(ready).json()["model"].items() >= named.items()
        assert (home / ".forecaster" / "slot" / "current").exists(), "in the volume"
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0, (tmp_path / "serve.log").read_text()


@pytest.mark.slow
def test_a_wheel_holds_all_that_a_server_needs(tmp_path: Path, image: str) -> None:
    """Built from a copy, unpacked into a folder of its own, and started with the packages of the image alone."""
    source, installed, home = tmp_path / "source", tmp_path / "installed", tmp_path / "home"
    for name in ("forecaster", "pipelines", "serving"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*pip, "--target", str(installed), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bundle = home / ".forecaster" / "slot" / "releases" / "made" / "bundle"
    digest = artifact.save(make_forecaster(make_spec()), bundle, card="")
    (bundle.parent / "release.json").write_text(json.dumps({"name": "small", "version": "1", "digest": digest}))
    (home / ".forecaster" / "slot" / "current").symlink_to("releases/made")
    path, port = image.replace(str(CHECKOUT), str(installed)), free_port()
    options = {"PYTHONPATH": path, "FORECASTER_SERVING_PORT": str(port), "FORECASTER_SERVING_LEDGER": "on"}
    log, address = tmp_path / "serve.log", f"http://127.0.0.1:{port}"
    with started(["-m", "pipelines.cli", "serve"], home, log=log, **options) as service:
        wait_until(lambda: _status(f"{address}/readyz") == 200 or service.poll() is not None, pause=0.1)
        assert service.poll() is None, log.read_text()
        page = httpx.get(f"{address}/")
        assert page.status_code == 200
        for name in re.findall(r"(?:src|href)=\"(/?page/[^\"]+)\"", page.text):
            assert httpx.get(f"{address}/{name.lstrip('/')}").status_code == 200, name
        series = {"id": "a", "start": "2026-01-01", "freq": "h", "y": [1.0, 2.0] * 20}
        answer = httpx.post(f"{address}/v1/forecast", json={"series": [series], "horizon": 2}, timeout=30)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"]["digest"] == digest
        assert (home / ".forecaster" / "slot" / "ledger.db").exists()


def _replace(part: str, replaced: dict[str, str]) -> str:
    for old, new in replaced.items():
        part = part.replace(old, new)
    return part


def _status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0
