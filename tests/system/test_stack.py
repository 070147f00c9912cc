"""The stack of docker/stack/compose.yaml as plain processes: a model's life through the proxy, and the loss of each part."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from pipelines.promotion.promote import promote_version, register_bundle
from pipelines.promotion.rollback import roll_back
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import train
from serving.deployment.releases import current_release
from tests.docker.test_monitoring import list_names, list_queries
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.system.processes import run_forecaster, wait_until, write_config
from tests.system.stack import Stack, find_nginx, http_status, running_stack
from tests.system.tracking_servers import postgres_skip_reason

pytestmark = [
    pytest.mark.integration,
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),  # Lightning's
]
HORIZON, REQUESTS = 4, 20


class Team:
    """A person who trains and a client who forecasts."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack = stack
        self.root = Root(folder / "root", stack.registry_url)
        self.source = DataSource(str(folder / "meters.csv"))
        self.frame = make_noise_frame()
        self.frame.to_csv(self.source.source, index=False)
        self.headers = {"authorization": f"Bearer {stack.read_secret('client_key')}"}

    def register(self, *, seed: int) -> str:
        """Trains and registers a model; returns its version."""
        spec = make_small_spec(name="meters", seed=seed, valid_windows=1)
        return register_bundle(train(self.source, spec, self.root).bundle, self.root).number

    def promote(self, version: str) -> None:
        promote_version("meters", self.root, version_number=version, force=True, reason="a test of the stack")

    def make_payload(self, **fields: Any) -> dict[str, Any]:
        series = [
            {"id": str(name), "start": "2026-01-01T00:00:00", "freq": "h", "y": rows["y"].tolist()}
            for name, rows in self.frame.groupby("unique_id")
        ]
        return {"series": series, "horizon": HORIZON, **fields}

    def forecast(self, url: str | None = None, **fields: Any) -> httpx.Response:
        return httpx.post(
            f"{url or self.stack.url}/v1/forecast", json=self.make_payload(**fields), headers=self.headers, timeout=40
        )

    def forecast_often(self) -> set[tuple[int, str]]:
        """Returns statuses and model versions of several forecasts through the proxy."""
        responses = [self.forecast() for _ in range(REQUESTS)]
        return {(each.status_code, each.json().get("model", {}).get("version", "")) for each in responses}

    def wait_for_version(self, version: str) -> None:
        """Waits until every replica serves a version."""

        def is_served() -> bool:
            models = [httpx.get(f"{url}/readyz", timeout=10).json() for url in self.stack.replica_urls]
            return all((each.get("model") or {}).get("version") == version for each in models)

        wait_until(is_served, seconds=120, pause=0.2)

    def count_in_ledger(self, outcome: str) -> float:
        """Returns how many forecasts all replicas have recorded with an outcome."""
        key, total = {"authorization": f"Bearer {self.stack.read_secret('prometheus_key')}"}, 0.0
        for url in self.stack.replica_urls:
            text = httpx.get(f"{url}/metrics", headers=key, timeout=10).text
            name = f'forecaster_ledger_forecasts_total{{outcome="{outcome}"}} '
            total += next(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))
        return total


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    reason = postgres_skip_reason()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("stack")
    with (
        tempfile.TemporaryDirectory(prefix="forecaster-stack-") as data,  # readable by the user of PostgreSQL
        pytest.MonkeyPatch.context() as patch,
    ):
        Path(data).chmod(0o755)
        with running_stack(folder, Path(data), model="meters") as stack:
            for name, value in stack.training_environment.items():
                if name != "MLFLOW_TRACKING_PASSWORD_FILE":
                    patch.setenv(name, value)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", stack.read_secret("registry_admin_password"))
            yield Team(stack, folder)


def test_1_a_stack_without_a_model_is_alive_and_not_ready(team: Team) -> None:
    wait_until(lambda: http_status(f"{team.stack.url}/livez") == 200)
    assert http_status(f"{team.stack.url}/readyz") == 503
    assert http_status(f"{team.stack.registry_url}/api/2.0/mlflow/experiments/search", params={"max_results": 1}) == 401
    assert httpx.get(f"{team.stack.registry_url}/", headers={"host": "evil.example"}).status_code == 403


def test_2_a_promoted_model_is_served_by_all_replicas_through_the_proxy(team: Team) -> None:
    team.promote(team.register(seed=1))
    team.wait_for_version("1")
    anonymous = httpx.post(f"{team.stack.url}/v1/forecast", json=team.make_payload())
    assert anonymous.status_code == 401
    assert http_status(f"{team.stack.url}/metrics") == 404
    sent = httpx.post(
        f"{team.stack.url}/v1/forecast",
        json=team.make_payload(),
        headers=team.headers | {"x-request-id": "of-a-client"},
        timeout=40,
    )
    assert (sent.status_code, sent.headers["x-request-id"]) == (200, "of-a-client")
    results = [team.forecast(url, return_state=True) for url in team.stack.replica_urls]
    first, second = (result.json()["forecasts"] for result in results)
    assert [each["mean"] if "mean" in each else each["y"] for each in first] == [
        each["mean"] if "mean" in each else each["y"] for each in second
    ]
    continued = {"series": [{"id": first[0]["id"], "state": first[0]["state"], "y": [10.0]}], "horizon": HORIZON}
    accepted = httpx.post(f"{team.stack.replica_urls[1]}/v1/forecast", json=continued, headers=team.headers, timeout=40)
    assert accepted.status_code == 200, "a replica rejects the state of another one"
    if find_nginx() is not None:
        lines = [json.loads(line) for line in (team.stack.folder / "access.log").read_text().splitlines()]
        assert {"of-a-client"} <= {line["request"] for line in lines}
        huge = httpx.post(f"{team.stack.url}/v1/forecast", content=b"x" * (17 << 20), headers=team.headers, timeout=40)
        assert huge.status_code == 413
    assert any("of-a-client" in replica.log.read_text() for replica in team.stack.replicas)


def test_3_actuals_are_scored_and_monitored_with_the_metrics_of_the_dashboard(team: Team, tmp_path: Path) -> None:
    expected = len(team.make_payload()["series"])
    wait_until(lambda: team.count_in_ledger("stored") >= expected, seconds=60, pause=0.2)
    start = (team.frame["ds"].max() + pd.Timedelta(hours=1)).isoformat()
    series = [
        {"id": each["id"], "start": start, "freq": "h", "y": [10.0] * HORIZON} for each in team.make_payload()["series"]
    ]
    sent = httpx.post(f"{team.stack.url}/v1/actuals", json={"series": series}, headers=team.headers, timeout=40)
    assert sent.status_code == 200, sent.text

    def count_scored() -> int:
        response = httpx.get(f"{team.stack.url}/v1/accuracy", headers=team.headers, timeout=40)
        return int(response.json()["scored"])

    wait_until(lambda: count_scored() == expected + 1, seconds=60, pause=0.5)  # one of them continued from a state
    metrics = tmp_path / "forecaster.prom"
    checked = run_forecaster(
        "monitor",
        "meters",
        "--root",
        team.stack.state,
        "--prometheus",
        metrics,
        folder=tmp_path,
        **team.stack.monitoring_environment,
    )
    assert checked.returncode in (0, 3), checked.stderr
    names = {name for query in list_queries() for name in list_names(query) if name.startswith("forecaster_live_")}
    assert names <= {line.partition("{")[0] for line in metrics.read_text().splitlines()}


def test_4_a_release_is_rolled_back_on_all_replicas(team: Team) -> None:
    team.promote(team.register(seed=2))
    team.wait_for_version("2")
    assert team.forecast_often() == {(200, "2")}
    roll_back("meters", team.root)
    team.wait_for_version("1")


def test_5_forecasts_survive_the_registry(team: Team) -> None:
    team.stack.registry.kill()
    assert team.forecast_often() == {(200, "1")}
    replica = team.stack.replicas[0]
    replica.kill()
    replica.start()
    wait_until(lambda: http_status(f"{team.stack.replica_urls[0]}/readyz") == 200, pause=0.2)
    team.stack.registry.start()
    team.stack.wait_for_registry()
    team.promote("2")
    team.wait_for_version("2")


def test_6_forecasts_survive_the_databases_and_are_recorded_again_afterwards(team: Team) -> None:
    team.stack.postgres.kill()
    assert team.forecast_often() == {(200, "2")}
    before = team.count_in_ledger("stored")
    team.stack.postgres.start()

    def is_recorded() -> bool:
        payload = team.make_payload(horizon=HORIZON)
        for each in payload["series"]:
            each["id"] = f"{each['id']} at {time.monotonic()}"
        assert (
            httpx.post(f"{team.stack.url}/v1/forecast", json=payload, headers=team.headers, timeout=40).status_code
            == 200
        )
        return team.count_in_ledger("stored") > before

    wait_until(is_recorded, seconds=120, pause=1)

    def is_promoted() -> bool:
        try:
            team.promote("1")
        except Exception:
            return False
        return True

    wait_until(is_promoted, seconds=60, pause=1)
    team.wait_for_version("1")


def test_7_forecasts_survive_a_killed_replica(team: Team) -> None:
    for replica, url in zip(team.stack.replicas, team.stack.replica_urls, strict=True):
        replica.kill()
        assert team.forecast_often() == {(200, "1")}
        replica.start()
        wait_until(lambda url=url: http_status(f"{url}/readyz") == 200, pause=0.2)  # type: ignore[misc]


def test_8_a_promotion_waits_for_a_killed_follower(team: Team) -> None:
    team.stack.follower.kill()
    team.promote("2")
    time.sleep(2)
    assert team.forecast_often() == {(200, "1")}
    team.stack.follower.start()
    team.wait_for_version("2")
    release = current_release(team.stack.folder / "models" / "slot")
    assert release is not None
    assert release.version == "2"


def test_9_a_killed_scheduler_runs_its_job_when_it_is_back(team: Team, tmp_path: Path) -> None:
    stack, environment = team.stack, team.stack.training_environment
    config = write_config(tmp_path / "meters.yaml", make_small_spec(name="meters", seed=3, valid_windows=1))
    job = [
        "retrain",
        team.stack.folder / "meters.csv",
        "--config",
        config,
        "--cron",
        "* * * * *",
        "--root",
        stack.state,
    ]
    added = run_forecaster(*job, folder=tmp_path, **environment)
    assert added.returncode == 0, added.stderr
    stack.scheduler.kill()
    time.sleep(1)
    stack.scheduler.start()

    def read_status() -> dict[str, Any]:
        listed = run_forecaster("schedule", "status", "--json", "--root", stack.state, folder=tmp_path, **environment)
        content: dict[str, Any] = json.loads(listed.stdout)
        return content

    wait_until(lambda: read_status()["jobs"][0]["last"] is not None, seconds=240, pause=5)
    status = read_status()
    assert status["scheduler"]["alive"]
    assert status["jobs"][0]["last"]["code"] in (0, 3), status  # promoted, or refused by the gate
    secrets = {path.name: path.read_text().strip() for path in stack.secrets.iterdir()}
    for part in (stack.registry, stack.follower, *stack.replicas, stack.scheduler, stack.proxy):
        text = part.log.read_text()
        assert [name for name, secret in secrets.items() if secret in text] == [], f"in the log of {part.name}"
