"""From a file to a forecast over HTTP: train, register, promote, serve, request, replace, stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import pytest

from forecaster.bundle import artifact
from forecaster.bundle.pretrained.specification import base_spec
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import CHALLENGER, BundleVersion, Registry
from forecaster.series import Forecast, Series
from pipelines.promotion.promote import promote_version, register_bundle
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.training.train import train
from tests.pipelines.conftest import make_small_spec
from tests.system.processes import free_port, process_tree, run_forecaster, start_process, wait_until, write_config

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning's
]

HORIZON = 6
FAST_POLLING = {
    "FORECASTER_SERVING_POLL_S": "0.2",
    "FORECASTER_SERVING_RELOAD_S": "0.1",
    "FORECASTER_SERVING_GRACE_S": "3",
}


class RunningService(NamedTuple):
    """A running service."""

    pid: int
    url: str

    def status(self, path: str) -> int:
        try:
            return httpx.get(f"{self.url}{path}").status_code
        except httpx.TransportError:
            return 0

    def request_forecast(self, series: list[Series]) -> httpx.Response:
        rows = [
            {"id": item.id, "start": item.start.isoformat(), "freq": item.freq, "y": item.y.tolist()} for item in series
        ]
        return httpx.post(f"{self.url}/v1/forecast", json={"series": rows, "horizon": HORIZON}, timeout=30)


@contextmanager
def serve_model(name: str, root: Root, folder: Path) -> Iterator[RunningService]:
    """Runs `forecaster serve`; yields it ready and checks its shutdown."""
    port = free_port()
    command = ["-m", "pipelines.cli", "serve", name, "--port", str(port), "--root", str(root.path)]
    log = folder / "serve.log"
    with start_process(command, folder, log=log, **FAST_POLLING) as process:
        server = RunningService(process.pid, f"http://127.0.0.1:{port}")
        wait_until(lambda: server.status("/readyz") == 200 or process.poll() is not None, pause=0.1)
        assert process.poll() is None, log.read_text()
        yield server
        processes = process_tree(process.pid)
        assert len(processes) >= 3, "the launcher, the server and the follower"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert alive == []
        assert server.status("/livez") == 0


def register_challenger(data: DataSource, root: Root, *, seed: int) -> BundleVersion:
    """Trains and registers a version as the challenger."""
    version = register_bundle(train(data, make_small_spec(seed=seed), root).bundle, root)
    Registry(root.store_uri).set_alias(version, CHALLENGER)
    return version


def library_forecast(root: Root, version: BundleVersion, series: list[Series]) -> list[np.ndarray]:
    """Returns the forecasts of the library."""
    bundles = [path for path in root.bundles.iterdir() if artifact.compute_bundle_digest(path) == version.digest]
    outcomes = Predictor(artifact.load_bundle(bundles[0])).forecast_batch(series, HORIZON)
    return [outcome.mean for outcome in outcomes if isinstance(outcome, Forecast)]


def check_response(response: dict[str, Any], root: Root, versions: list[BundleVersion], series: list[Series]) -> str:
    """Checks that a response matches the version that it names; returns the version's number."""
    model = response["model"]
    version = next(version for version in versions if version.number == model["version"])
    identity = {"name": version.name, "version": version.number, "digest": version.digest}
    assert model == {**identity, "reliable_horizon": model["reliable_horizon"]}
    assert 0 <= model["reliable_horizon"] <= HORIZON
    assert [forecast["id"] for forecast in response["forecasts"]] == [item.id for item in series]
    for served, mean in zip(response["forecasts"], library_forecast(root, version, series), strict=True):
        np.testing.assert_allclose(served["mean"], mean, rtol=1e-5)  # the graph of the server rounds differently
    return version.number


def test_a_promotion_switches_a_running_service_without_a_failed_request(
    noise_data: DataSource, fresh_root: Root, tmp_path: Path
) -> None:
    series = list(read_panel(noise_data).series[:3])
    first = register_challenger(noise_data, fresh_root, seed=0)
    promote_version("small", fresh_root, version_number=None, force=True)
    with serve_model("small", fresh_root, tmp_path) as server:
        assert check_response(server.request_forecast(series).json(), fresh_root, [first], series) == "1"
        model_info = httpx.get(f"{server.url}/v1/model").json()
        assert model_info["model"].items() >= {"name": "small", "version": "1", "digest": first.digest}.items()
        assert model_info["card"].startswith("# small")

        for body, code in ((b"{", 400), (b'{"series": "none"}', 422), (b'{"series": [], "horizon": 0}', 422)):
            response = httpx.post(
                f"{server.url}/v1/forecast", content=body, headers={"content-type": "application/json"}
            )
            assert response.status_code == code
            assert response.json()["error"]["message"]
        assert server.status("/livez") == 200

        responses: list[httpx.Response] = []
        stopped = threading.Event()

        def send_requests() -> None:
            while not stopped.is_set():
                responses.append(server.request_forecast(series))

        thread = threading.Thread(target=send_requests)
        thread.start()
        try:
            wait_until(lambda: len(responses) > 3)
            second = register_challenger(noise_data, fresh_root, seed=1)
            promote_version("small", fresh_root, version_number=None, force=True)
            wait_until(lambda: responses[-1].status_code == 200 and responses[-1].json()["model"]["version"] == "2")
            count = len(responses)
            wait_until(lambda: len(responses) > count + 3)
        finally:
            stopped.set()
            thread.join(30)
        assert {response.status_code for response in responses} == {200}
        numbers = [response.json()["model"]["version"] for response in responses]
        assert numbers == sorted(numbers), "no response from the old version after the switch"
        switch = numbers.index("2")
        for response in (responses[0], responses[switch - 1], responses[switch], responses[-1]):
            check_response(response.json(), fresh_root, [first, second], series)


def test_the_demo_trains_serves_forecasts_and_plots(tmp_path: Path) -> None:
    configs, root = tmp_path / "configs", tmp_path / "root"
    configs.mkdir()
    training = {"initial": "base", "steps": 4, "epoch_steps": 2, "batch": 8, "learning_rate": 1e-5}
    hospital = base_spec(12, horizon=12, name="hospital", context=24, training=training)
    sine = make_small_spec(name="sine", valid_windows=0).model_copy(update={"context": 30, "horizon": 40, "season": 1})
    write_config(configs / "hospital.yaml", hospital)
    write_config(configs / "sine.yaml", sine)
    write_config(configs / "sine_unrolled.yaml", sine.model_copy(update={"name": "sine_unrolled"}))
    completed = run_forecaster("demo", "--configs", configs, "--root", root, folder=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert "3 served forecasts equal those of the library" in completed.stderr
    assert "median and the upper quartile of the error" in completed.stderr
    for name in ("last value", "pretrained network"):
        assert f"  {name} " in completed.stderr
    plots = sorted((root / "demo").glob("*.png"))
    assert [path.name for path in plots] == ["hospital.png", "sine.png"]
    for path in plots:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert str(path) in completed.stderr
    page = (root / "demo" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert completed.stderr.rstrip().endswith(str(root / "demo" / "index.html"))
    for line in completed.stderr.splitlines():
        if line.startswith("  /") and "/bin/forecaster " in line:  # the commands that the demo advises exist
            assert line.split("/bin/forecaster ")[1].split()[0] in ("serve", "forecast", "backtest", "data", "train")
    assert Registry(Root(root).store_uri).resolve("hospital", "champion").number == "1"
    failed = run_forecaster("demo", "--configs", tmp_path / "elsewhere", folder=tmp_path)
    assert failed.returncode == 2
