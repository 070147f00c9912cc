"""End to end: a bundle on disk, BentoML's server in its own processes, requests over HTTP, and a shutdown."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest

from forecaster.bundle import artifact
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.model.regressor import build_network
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.registry.registry import Registry, create_client
from forecaster.series import Series
from forecaster.spec import NetworkSpec, Spec
from serving.deployment import launcher as launcher_module
from serving.deployment import releases
from serving.deployment import slot as slots
from serving.settings import Settings

pytestmark = pytest.mark.integration

CONTEXT, HORIZON = 12, 6


def save_random_model(folder: Path, *, seed: int) -> str:
    """Saves an untrained network, which is enough for these tests, and returns the bundle's digest."""
    spec = Spec(name="tiny", context=CONTEXT, horizon=HORIZON, network=NetworkSpec(hidden=4))
    fitted_model = FittedModel(
        spec, "h", 24, pd.Timestamp("2026-01-01"), EMPTY_ENCODING, build_network(spec, seed=seed)
    )
    return artifact.save_bundle(fitted_model, folder, card="# Tiny\n")


def publish_random_model(slot: Path, *, version: str, seed: int) -> FittedModel:
    with releases.staging(slot) as draft:
        digest = save_random_model(draft / "bundle", seed=seed)
        releases.publish(slot, draft / "bundle", releases.Release(name="tiny", version=version, digest=digest))
    return artifact.load_bundle(slot / "current" / "bundle")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(settings: Settings, folder: Path) -> subprocess.Popen[bytes]:
    """Starts `python -m serving` in the unrelated folder `elsewhere`, with temporary files in `tmp`."""
    working_folder, temporary = folder / "elsewhere", folder / "tmp"
    working_folder.mkdir()
    temporary.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("BENTOML", "FORECASTER"))},
        **settings.to_environment(),
        "HOME": str(working_folder),
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(Path(slots.__file__).parents[2]),
    }
    return subprocess.Popen([sys.executable, "-m", "serving"], env=environment, cwd=working_folder)


@contextmanager
def running_server(settings: Settings, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Runs `python -m serving`, and checks that it leaves no files behind."""
    process = start_server(settings, folder)
    try:
        yield process, f"http://127.0.0.1:{settings.port}"
        process.terminate()
        assert process.wait(20) == 0
        assert list((folder / "elsewhere").iterdir()) == []
        assert [entry.name for entry in (folder / "tmp").iterdir() if entry.name.startswith("forecaster")] == []
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)


def http_status(url: str) -> int:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return 0


def wait_until(ready: Any, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def test_the_server_responds_like_the_library_follows_the_slot_and_stops_on_sigterm(
    slot_folder: Path, tmp_path: Path
) -> None:
    settings = Settings(slot=slot_folder, port=free_port(), workers=2, reload_s=0.1, grace_s=3)
    with running_server(settings, tmp_path) as (process, url):
        _check_responses(slot_folder, url)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert http_status(f"{url}/livez") == 0


def _check_responses(slot_folder: Path, url: str) -> None:
    wait_until(lambda: http_status(f"{url}/livez") == 200)
    assert http_status(f"{url}/readyz") == 503, "BentoML's own would say 200"
    y = [float(value) for value in 10 + np.sin(np.arange(2 * CONTEXT))]
    request = {"series": [{"id": "a", "start": "2026-01-01T00:00:00Z", "freq": "h", "y": y}], "horizon": HORIZON}

    def fetch_responses() -> Any:
        # A new connection each time, so that both workers receive requests.
        responses = [httpx.post(f"{url}/v1/forecast", json=request) for _ in range(8)]
        payloads = [response.json() for response in responses if response.status_code == 200]
        return (
            payloads
            if len(payloads) == 8 and all(payload["model"] == payloads[0]["model"] for payload in payloads)
            else None
        )

    for version in ("1", "2"):
        forecaster = publish_random_model(slot_folder, version=version, seed=int(version))
        wait_until(
            lambda expected_version=version: (
                (payloads := fetch_responses()) is not None and payloads[0]["model"]["version"] == expected_version
            )
        )
        history = Series("a", pd.Timestamp("2026-01-01", tz="UTC"), "h", np.array(y))
        expected = Predictor(forecaster).forecast(history, HORIZON)
        for response in fetch_responses():
            forecast = response["forecasts"][0]
            np.testing.assert_allclose(forecast["mean"], expected.mean, rtol=1e-5)  # rounding depends on the threads
            assert forecast["ds"] == [stamp.strftime("%Y-%m-%dT%H:%M:%SZ") for stamp in expected.ds]

    assert httpx.get(f"{url}/v1/model").json()["card"] == "# Tiny\n"
    for path in ("/healthz", "/static_content/index.css", "/livez/"):
        response = httpx.get(url + path)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found"), (
            "BentoML's own paths are not served"
        )
    assert (
        httpx.post(f"{url}/v1/forecast", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    )
    assert httpx.get(f"{url}/a%0Ab").json()["error"]["code"] == "bad_path"
    text = httpx.get(f"{url}/metrics").text
    assert 'forecaster_requests_total{route="/v1/forecast",status="400"} 1.0' in text
    assert 'forecaster_model_changes_total{outcome="swapped"} 4.0' in text, "two workers, two models"


def test_a_promotion_in_the_registry_reaches_the_server(slot_folder: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    registry, client = Registry(uri), create_client(uri)
    run_id = client.create_run(client.create_experiment("e", artifact_location=str(tmp_path / "store"))).info.run_id
    settings = Settings(
        slot=slot_folder, port=free_port(), registry=uri, model="tiny", reload_s=0.1, poll_s=0.2, grace_s=3
    )
    with running_server(settings, tmp_path) as (_, url):
        champion = None
        for seed in (1, 2):
            bundle = tmp_path / f"bundle-{seed}"
            version = registry.register(
                bundle,
                name="tiny",
                digest=save_random_model(bundle, seed=seed),
                run_id=run_id,
                input_example=pd.DataFrame({"y": [1.0]}),
                output_example=pd.DataFrame({"mean": [1.0]}),
            )
            registry.promote(version, expected_champion=champion)
            champion = version
            expected = {"name": "tiny", "version": version.number, "digest": version.digest}

            def is_deployed(model: dict[str, str] = expected) -> bool:
                return http_status(f"{url}/readyz") == 200 and httpx.get(f"{url}/readyz").json()["model"] == model

            wait_until(is_deployed)


def test_all_processes_end_when_the_launcher_is_killed(slot_folder: Path, tmp_path: Path) -> None:
    publish_random_model(slot_folder, version="1", seed=1)
    settings = Settings(
        slot=slot_folder,
        port=free_port(),
        registry=f"sqlite:///{tmp_path}/mlflow.db",
        model="tiny",
        poll_s=0.2,
        grace_s=3,
    )
    launcher = start_server(settings, tmp_path)
    children: list[psutil.Process] = []
    try:
        wait_until(lambda: http_status(f"http://127.0.0.1:{settings.port}/readyz") == 200)
        children = psutil.Process(launcher.pid).children(recursive=True)
        assert len(children) >= 3, "server, worker and follower"
        launcher.kill()
        launcher.wait(10)
        _, alive = psutil.wait_procs(children, timeout=30)
        assert [child.cmdline() for child in alive] == []
    finally:
        launcher.kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def test_a_server_without_a_process_folder_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(launcher_module, "_PROCESSES", tmp_path)
    monkeypatch.setattr(launcher_module.threading, "Thread", lambda **arguments: started.append(arguments))
    launcher_module.end_with_launcher({launcher_module.LAUNCHER_VARIABLE: "1"}, grace_s=1.0)
    assert started == []


def test_serving_imports_no_trainer_no_plots_and_no_registry() -> None:
    program = (
        "import sys, serving.service, serving.supervisor, forecaster.bundle.artifact, forecaster.prediction.predictor\n"
        "imported = {'pytorch_lightning', 'lightning', 'matplotlib', 'mlflow'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(imported)) or 0)"
    )
    package = Path(slots.__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FORECASTER_")}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=package, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
