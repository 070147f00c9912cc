"""The service as docker/compose.yaml starts it: its command, its environment, a registry over HTTP, and only the packages of its
image.
"""

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
from pipelines.promotion.promote import promote_version, register_bundle
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import train
from serving.asgi.auth import build_keyring
from serving.settings import Settings
from tests.factories import make_fitted_model, make_spec
from tests.pipelines.conftest import make_small_spec
from tests.system.processes import CHECKOUT, free_port, start_process, wait_until

pytestmark = pytest.mark.integration

COMPOSE_SERVICES: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker" / "compose.yaml").read_text())["services"]
DOCKERFILE = (CHECKOUT / "docker" / "Dockerfile").read_text()

# Written as sitecustomize.py, which every Python on whose path it is reads: hides the packages that are not in the image.
_IMPORT_BLOCKER = """
import sys
from importlib.machinery import PathFinder
hidden = set({hidden})
class ImageFinder(PathFinder):
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in hidden or name.partition(".")[0] in hidden:
            return None
        return PathFinder.find_spec(name, path, target)
sys.meta_path = [ImageFinder if finder is PathFinder else finder for finder in sys.meta_path]
"""


def modules_missing_from_image() -> set[str]:
    """Returns the modules of this environment that requirements/lock-serve.txt does not install."""
    lock = (CHECKOUT / "requirements" / "lock-serve.txt").read_text()
    locked = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    own_packages = {"forecaster", "pipelines", "serving"}
    missing = {
        module
        for module, distributions in packages_distributions().items()
        if module not in own_packages
        and not any(canonicalize_name(distribution) in locked for distribution in distributions)
    }
    return missing | _modules_of("mlflow") - _modules_of("mlflow-skinny")


def _modules_of(distribution: str) -> set[str]:
    paths = [str(path) for path in files(distribution) or []]
    return {path[:-3].replace("/", ".").removesuffix(".__init__") for path in paths if path.endswith(".py")}


@pytest.fixture
def image_pythonpath(tmp_path: Path) -> str:
    """A PYTHONPATH that provides only what the image has."""
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_IMPORT_BLOCKER.format(hidden=sorted(modules_missing_from_image())))
    return f"{folder}:{CHECKOUT}"


def compose_environment(service: str, **overrides: str) -> dict[str, str]:
    """Returns the environment of a service if the user's environment sets nothing."""
    variables = COMPOSE_SERVICES[service]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*)}", r"\1", value) for name, value in variables.items()} | overrides


def test_the_image_excludes_training_packages() -> None:
    missing = modules_missing_from_image()
    assert {"torch", "pytorch_lightning", "matplotlib", "statsforecast", "alembic"} <= missing
    assert not {"onnxruntime", "pandas", "mlflow", "cyclopts", "bentoml", "yaml", "sqlalchemy", "psycopg"} & missing


def test_the_container_serves_the_model_named_in_its_environment() -> None:
    assert json.loads(DOCKERFILE.split("ENTRYPOINT ")[-1]) == ["forecaster", "serve"]
    environment = compose_environment("forecaster")
    assert environment["FORECASTER_SERVING_MODEL"] == "hospital", "the model of the demo"
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert environment["FORECASTER_SERVING_HOST"] == "0.0.0.0"
    assert environment["FORECASTER_SERVING_LEDGER"] == "on"
    settings = {name: value for name, value in environment.items() if name.startswith("FORECASTER_SERVING_")}
    assert build_keyring(Settings.from_environment(settings)) is None, (
        "starts without keys, because the setting declares a proxy that authenticates"
    )


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's
def test_the_compose_services_serve_the_promoted_model(
    migrated_root: Path, noise_data: DataSource, tmp_path: Path, image_pythonpath: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, home = tmp_path / "mlflow", tmp_path / "home"
    store.mkdir()
    home.mkdir()
    shutil.copy(migrated_root / "mlflow.db", store)
    ports = {"registry": free_port(), "service": free_port()}
    address = f"http://127.0.0.1:{ports['registry']}"
    replacements = {"/var/lib/mlflow": str(store), "0.0.0.0": "127.0.0.1", "5000": str(ports["registry"])}
    server = [_substitute(part, replacements) for part in COMPOSE_SERVICES["mlflow"]["command"]]
    environment = compose_environment(
        "forecaster",
        MLFLOW_TRACKING_URI=address,
        FORECASTER_SERVING_HOST="127.0.0.1",
        FORECASTER_SERVING_PORT=str(ports["service"]),
        FORECASTER_SERVING_POLL_S="0.2",
        HOME=str(home),
        PYTHONPATH=image_pythonpath,
    )
    ready = f"http://127.0.0.1:{ports['service']}/readyz"
    with (
        start_process(
            ["-m", *server], tmp_path, log=tmp_path / "mlflow.log", **compose_environment("mlflow")
        ) as registry,
        start_process(
            ["-m", "pipelines.cli", "serve", *COMPOSE_SERVICES["forecaster"]["command"]],
            home,
            log=tmp_path / "serve.log",
            **environment,
        ) as service,
    ):
        wait_until(lambda: _http_status(f"{address}/health") == 200 or registry.poll() is not None, pause=0.1)
        root = Root(tmp_path / "root", address)
        version = register_bundle(train(noise_data, make_small_spec(name="hospital"), root).bundle, root)
        promote_version("hospital", root, version_number=version.number, force=True)
        wait_until(lambda: _http_status(ready) == 200 or service.poll() is not None, pause=0.1)
        assert service.poll() is None, (tmp_path / "serve.log").read_text()
        identity = {"name": "hospital", "version": "1", "digest": version.digest}
        assert httpx.get(ready).json()["model"].items() >= identity.items()
        assert (home / ".forecaster" / "slot" / "current").exists(), "the slot is in the volume"
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0, (tmp_path / "serve.log").read_text()


def test_a_wheel_contains_everything_a_server_needs(tmp_path: Path, image_pythonpath: str) -> None:
    """The wheel is built from a copy, unpacked into its own folder, and started with only the packages of the image."""
    source, installed, home = tmp_path / "source", tmp_path / "installed", tmp_path / "home"
    for name in ("forecaster", "pipelines", "serving"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    completed = subprocess.run(
        [*pip, "--target", str(installed), str(source)], capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    bundle = home / ".forecaster" / "slot" / "releases" / "made" / "bundle"
    digest = artifact.save_bundle(make_fitted_model(make_spec()), bundle, card="")
    (bundle.parent / "release.json").write_text(json.dumps({"name": "small", "version": "1", "digest": digest}))
    (home / ".forecaster" / "slot" / "current").symlink_to("releases/made")
    path, port = image_pythonpath.replace(str(CHECKOUT), str(installed)), free_port()
    options = {"PYTHONPATH": path, "FORECASTER_SERVING_PORT": str(port), "FORECASTER_SERVING_LEDGER": "on"}
    log, address = tmp_path / "serve.log", f"http://127.0.0.1:{port}"
    with start_process(["-m", "pipelines.cli", "serve"], home, log=log, **options) as service:
        wait_until(lambda: _http_status(f"{address}/readyz") == 200 or service.poll() is not None, pause=0.1)
        assert service.poll() is None, log.read_text()
        page = httpx.get(f"{address}/")
        assert page.status_code == 200
        for name in re.findall(r"(?:src|href)=\"(/?page/[^\"]+)\"", page.text):
            assert httpx.get(f"{address}/{name.lstrip('/')}").status_code == 200, name
        series = {"id": "a", "start": "2026-01-01", "freq": "h", "y": [1.0, 2.0] * 20}
        response = httpx.post(f"{address}/v1/forecast", json={"series": [series], "horizon": 2}, timeout=30)
        assert response.status_code == 200, response.text
        assert response.json()["model"]["digest"] == digest
        ledger = home / ".forecaster" / "slot" / "ledger.db"
        wait_until(ledger.exists, pause=0.1)  # the writer is a process of its own, which the server does not wait for


def _substitute(part: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        part = part.replace(old, new)
    return part


def _http_status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0
