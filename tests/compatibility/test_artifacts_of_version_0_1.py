"""What version 0.1 wrote can still be read, served and continued: bundles, registry, ledger, schedule, states, checkpoints.

`version_0_1/state.tar.xz` contains a whole root folder; `version_0_1/expected.json` records what the code that wrote it reported
about it. README.md says how both were made.
"""

from __future__ import annotations

import json
import math
import signal
import sqlite3
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.ledger.accuracy import compute_accuracy
from forecaster.ledger.adaptive import load_adaptive_state
from forecaster.ledger.records import ForecastFilter, ObservedSeries, encode_timestamps, series_key
from forecaster.ledger.store import Ledger
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import Registry, create_client
from forecaster.series import Series
from pipelines.cli import main
from pipelines.monitoring.monitor import build_monitoring_report
from pipelines.promotion.promote import fetch_bundle, load_verdict, verify_audit_log
from pipelines.scheduling.scheduler import Scheduler
from pipelines.settings import Root
from pipelines.sources import DataSource, read_spec
from pipelines.tracking import reader
from pipelines.training.train import train
from serving.deployment import local_rollback
from serving.deployment.follower import FollowTarget, find_update
from serving.deployment.releases import current_release
from tests.compatibility import relocation
from tests.forecaster.ledger.layout_of_version_1 import VERSION_1_SQL
from tests.system.processes import free_port, start_process, wait_until

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent / "version_0_1"
ARCHIVE = HERE / "state.tar.xz"
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
NAME = "monthly"
VERSIONS = ["1", "2", "3"]
CHAMPION, FORMER = "2", "1"
TOLERANCE = 1e-6  # relative; engines and processors round float32 otherwise, by some 1e-7
TRAINED = 1e-3  # likewise of a training, which carries such differences on
FOREVER_DAYS = 100_000  # the ledger is older every day, and must not be forgotten


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """The root folder, for tests that only read it."""
    return Root(relocation.unpack(ARCHIVE, tmp_path_factory.mktemp("version-0.1") / "work") / "state")


@pytest.fixture
def copy(tmp_path: Path) -> Root:
    """The root folder, for a test that changes it."""
    return Root(relocation.unpack(ARCHIVE, tmp_path / "work") / "state")


@contextmanager
def ledger_of(root: Root) -> Iterator[Ledger]:
    with closing(Ledger(f"sqlite:///{root.slot}/ledger.db")) as ledger:
        yield ledger


def request_history() -> Series:
    """The history of the recorded forecast request."""
    [series] = EXPECTED["forecast"]["asked"]["series"]
    start = pd.Timestamp(series["start"].removesuffix("Z"))
    return Series(series["id"], start, series["freq"], np.array(series["y"]), static=series["static"])


def run(*arguments: object) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    return int(left.value.code or 0)


ADDED_SCORES = {"wql_recorded", "msis_95"}
"""Scores of served forecasts that later versions report in addition."""


def without_added_scores(scores: dict[str, Any]) -> dict[str, Any]:
    """Returns scores of served forecasts without those that version 0.1 did not have."""
    assert scores.keys() >= ADDED_SCORES
    return {name: value for name, value in scores.items() if name not in ADDED_SCORES}


def check_same(actual: Any, expected: Any, *, rel: float = TOLERANCE, where: str = "response") -> None:
    """Asserts that plain data are equal, numbers within a relative tolerance."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for name, value in expected.items():
            check_same(actual[name], value, rel=rel, where=f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for index, value in enumerate(expected):
            check_same(actual[index], value, rel=rel, where=f"{where}.{index}")
    elif isinstance(expected, float):
        assert math.isclose(actual, expected, rel_tol=rel, abs_tol=1e-9), (where, actual, expected)
    else:
        assert actual == expected, where


def test_the_archive_names_no_machine(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as file:
        file.extractall(tmp_path / "raw", filter="data")
    relocation.check(tmp_path / "raw")
    relocation.check(HERE)
    unpacked = relocation.unpack(ARCHIVE, tmp_path / "work")
    left = [
        path for path in unpacked.rglob("*") if path.is_file() and relocation.PLACEHOLDER.encode() in path.read_bytes()
    ]
    assert left == []


@pytest.mark.parametrize("number", VERSIONS)
def test_a_bundle_loads_and_gives_the_same_forecast(state: Root, number: str) -> None:
    expected, horizon = EXPECTED["bundles"][number], EXPECTED["forecast"]["asked"]["horizon"]
    levels = [float(level) for level in expected["quantiles"]]
    folder = state.bundles / expected["bundle"]
    artifact.verify_files(folder)
    for predictor in (
        Predictor(artifact.load_bundle(folder)),
        artifact.load_predictor(folder),
    ):  # both replay the golden requests
        answer = predictor.forecast(request_history(), horizon, levels=levels)
        np.testing.assert_allclose(answer.mean, expected["mean"], rtol=TOLERANCE)
        for level in levels:
            np.testing.assert_allclose(answer.quantiles[level], expected["quantiles"][str(level)], rtol=TOLERANCE)


def test_the_registry_lists_versions_aliases_and_tags(state: Root) -> None:
    registry, expected = Registry(state.store_uri), EXPECTED["registry"]
    versions = registry.list_versions(NAME)
    assert [version._asdict() for version in versions] == expected["versions"]
    assert {version.number: registry.get_tags(version) for version in versions} == expected["tags"]
    for alias, number in expected["aliases"].items():
        assert registry.resolve(NAME, alias).number == number
    key = expected["tags"]["3"]["retrain_key"]
    found = registry.find_version(NAME, tag="retrain_key", value=key)
    assert found is not None
    assert found.number == "3"


@pytest.mark.parametrize("number", VERSIONS)
def test_the_run_of_a_version_has_its_parameters_metrics_and_raw_forecasts(state: Root, number: str) -> None:
    version = Registry(state.store_uri).get_version(NAME, number)
    assert version.run_id is not None
    run = create_client(state.store_uri).get_run(version.run_id)
    found = {"params": run.data.params, "metrics": run.data.metrics, "status": run.info.status}
    check_same(found, EXPECTED["registry"]["runs"][number])
    stored = reader.load_run(f"{NAME}@{number}", state)
    assert stored.stored_backtest is not None
    assert stored.stored_backtest.forecasts[stored.stored_backtest.model_column].notna().all()


@pytest.mark.parametrize("number", VERSIONS)
def test_a_version_is_fetched_from_the_store_and_loads(copy: Root, number: str) -> None:
    version = Registry(copy.store_uri).get_version(NAME, number)
    folder = fetch_bundle(version, copy)
    assert folder.parent == copy.bundle_cache, "it was copied from the store"
    assert artifact.compute_bundle_digest(folder) == version.digest
    forecaster = artifact.load_bundle(folder)
    assert forecaster.spec == read_spec(copy.path.parent / "monthly.yaml").model_copy(
        update={"training": forecaster.spec.training}
    )


def test_the_logged_model_of_the_champion_describes_its_bundle(state: Root) -> None:
    from mlflow.models import Model

    version = Registry(state.store_uri).get_version(NAME, CHAMPION)
    location = create_client(state.store_uri).get_model_version_download_uri(NAME, CHAMPION)
    model = Model.load(location.removeprefix("file://"))
    # It has no flavour `python_function`, so `mlflow.pyfunc.load_model` never was a way to load it.
    assert model.flavors == {"forecaster": {"bundle": "bundle", "digest": version.digest}}
    assert model.run_id == version.run_id
    assert model.signature is not None
    assert model.signature.inputs.input_names() == ["unique_id", "ds", "y"]


def test_the_verdict_on_a_refused_version_is_read_from_the_root_and_from_its_run(copy: Root) -> None:
    version, expected = Registry(copy.store_uri).get_version(NAME, "3"), EXPECTED["registry"]["verdict"]
    table = copy.verdicts / str(version.run_id) / "verdict.json"
    for is_local in (True, False):
        assert table.exists() == is_local
        told = load_verdict(version, copy)
        assert told is not None
        found = {
            "promote": told.verdict.should_promote,
            "failed": list(told.verdict.failed_checks),
            "against": told.champion_number,
        }
        assert found == expected
        table.unlink(missing_ok=True)


def test_the_audit_log_is_complete_and_a_rollback_extends_it(copy: Root, capsys: pytest.CaptureFixture[str]) -> None:
    lines = EXPECTED["registry"]["audit"]
    assert run("audit", "--root", copy.path) == 0
    printed = capsys.readouterr()
    *entries, summary = printed.out.splitlines()
    assert entries == lines
    assert "forecaster audit --adopt" in printed.err
    assert summary.startswith(str(len(lines)))
    assert run("rollback", NAME, "--root", copy.path) == 0
    registry = Registry(copy.store_uri)
    assert registry.resolve(NAME, "champion").number == FORMER
    assert registry.resolve(NAME, "former").number == CHAMPION
    found = verify_audit_log(copy, NAME)
    assert found.faults == ()
    assert [str(line) for line in found.entries[:-1]] == lines
    assert (found.entries[-1].event, found.entries[-1].version, found.entries[-1].before) == (
        "rollback",
        FORMER,
        CHAMPION,
    )


def test_the_log_of_a_root_without_seals_is_adopted(copy: Root, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("audit", "--adopt", "--root", copy.path) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines()[0] == f"{NAME} version {CHAMPION} is adopted"
    assert run("rollback", NAME, "--root", copy.path) == 0
    found = verify_audit_log(copy, NAME)
    assert (found.faults, found.notes) == ((), ())
    assert [entry.event for entry in found.entries[-2:]] == ["adopt", "rollback"]


def test_the_layout_from_which_ledgers_are_migrated_is_that_of_version_0_1(state: Root) -> None:
    with closing(sqlite3.connect(f"{(state.slot / 'ledger.db').as_uri()}?mode=ro", uri=True)) as database:
        statements = [sql for (sql,) in database.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
        facts = dict(database.execute("SELECT name, value FROM ledger_facts WHERE name = 'schema'").fetchall())
    assert facts == {"schema": "1"}
    assert {" ".join(sql.split()) for sql in statements} == {" ".join(sql.split()) for sql in VERSION_1_SQL}


def test_the_ledger_gives_the_same_accuracy_and_drift(state: Root) -> None:
    expected, drift = EXPECTED["ledger"]["accuracy"], EXPECTED["ledger"]["drift"]
    which = ForecastFilter(digest=drift["digest"])
    with ledger_of(state) as ledger:
        assert ledger.span(which).forecasts == expected["forecasts"]
        assert [(model.name, model.version, model.digest) for model in ledger.models(ForecastFilter())] == [
            (NAME, CHAMPION, drift["digest"])
        ]
        found = compute_accuracy(ledger, which)
        learned = load_adaptive_state(ledger, drift["digest"])
    assert found.scored == expected["scored"]
    overall = found.overall._asdict() | {
        name: {str(share): value for share, value in getattr(found.overall, name).items()}
        for name in ("coverage", "width")
    }
    check_same(without_added_scores(overall), expected["overall"])
    assert {step: score.n for step, score in found.by_step.items()} == {
        row["step"]: row["n"] for row in expected["by_horizon"]
    }
    assert set(found.by_group) == {"north", "south"}
    assert learned is not None
    np.testing.assert_allclose(learned.shifts_at(drift["levels"]), drift["shifts"])


def test_repeated_actuals_change_nothing(copy: Root) -> None:
    told = []
    with ledger_of(copy) as ledger:
        for one in EXPECTED["ledger"]["actuals"]:
            start = pd.Timestamp(one["start"])
            stamps = encode_timestamps(pd.date_range(start, periods=len(one["y"]), freq=one["freq"]))
            told.append(ObservedSeries(series_key(ledger.salt, one["id"], start), stamps, one["y"]))
        credited = ledger.observe(told, now=0.0)
    for found, expected in zip(credited, EXPECTED["ledger"]["credited"]["outcomes"], strict=True):
        assert (found.stored, found.corrected, found.scored) == (0, 0, expected["scored"])


def test_the_monitor_reads_champion_and_ledger(copy: Root) -> None:
    report = build_monitoring_report(copy, NAME)
    assert (report.model.version, report.accuracy.scored) == (CHAMPION, EXPECTED["ledger"]["accuracy"]["scored"])
    assert report.input_shifts, "the bundle says what it was trained on"


def test_the_schedule_is_read(state: Root, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schedule", "status", "--json", "--root", state.path) in (0, 1)  # 1: no scheduler is alive
    told, expected = json.loads(capsys.readouterr().out), EXPECTED["schedule"]
    assert told["scheduler"]["pid"] > 0
    assert [job["name"] for job in told["jobs"]] == [job["name"] for job in expected["jobs"]]
    for job, kept in zip(told["jobs"], expected["jobs"], strict=True):
        where = expected["states"][job["name"]]
        assert (job["cron"], job["zone"], job["command"]) == (
            kept["cron"],
            kept["zone"],
            " ".join(["forecaster", *kept["words"]]),
        )
        assert (job["last"], job["refused"], job["refusal"]) == (where["last"], where["refused"], where["refusal"])
        assert job["doing"] == ("idle" if where["waiting"] is None else "queued")


def test_the_scheduler_runs_queued_and_due_jobs(copy: Root) -> None:
    queued = EXPECTED["schedule"]["states"]["queued"]
    now, called = (datetime.fromisoformat(queued[name]) for name in ("considered", "waiting"))
    command = (sys.executable, "-c", "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))")
    scheduler = Scheduler(copy, command=command, now=lambda: now)
    jobs = {job["name"]: job for job in EXPECTED["schedule"]["jobs"]}

    def check(name: str, call: datetime) -> None:
        state = scheduler.store.load_state(name)
        assert state.last is not None
        assert (state.last.call, state.last.outcome, state.waiting) == (call, "done", None), state
        assert json.loads(state.last.said) == [str(copy.path.parent), *jobs[name]["words"], f"--root={copy.path}"]

    scheduler.requeue_interrupted()
    assert scheduler.run_next(), "the queued call is resumed"
    assert not scheduler.run_next(), "once"
    check("queued", called)
    now += timedelta(days=1)
    scheduler.queue_due_jobs()
    while scheduler.run_next():
        pass
    for name in jobs:
        check(name, called + timedelta(days=1))


@pytest.mark.parametrize("name", ["monthly", "queued"])
def test_the_command_of_a_job_is_still_valid(copy: Root, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [words] = [job["words"] for job in EXPECTED["schedule"]["jobs"] if job["name"] == name]
    monkeypatch.chdir(copy.path.parent)
    # Scheduled once more, which reads every word of it and trains nothing.
    assert run(*words, "--cron=0 4 * * *", f"--root={copy.path}") == 0
    job = Scheduler(copy).store.load_job(name)
    assert job is not None
    assert (list(job.words), job.cron) == (words, "0 4 * * *")


def test_a_killed_training_resumes_in_its_run(copy: Root) -> None:
    work, expected = copy.path.parent, EXPECTED["resumed"]
    trained = train(DataSource(str(work / "monthly.csv")), read_spec(work / "interrupted.yaml"), copy)
    assert trained.run_id == expected["run_id"]
    assert not any(path.is_dir() for path in copy.checkpoints.iterdir()), "the checkpoint is removed"
    answer = Predictor(artifact.load_bundle(trained.bundle)).forecast(request_history(), len(expected["forecast"]))
    np.testing.assert_allclose(answer.mean, expected["forecast"], rtol=TRAINED)
    assert create_client(copy.store_uri).get_run(trained.run_id).info.status == "FINISHED"


def test_the_slot_holds_the_champion_and_supports_a_local_rollback(copy: Root) -> None:
    release = current_release(copy.slot)
    assert release is not None
    champion = Registry(copy.store_uri).resolve(NAME, "champion")
    assert (release.name, release.version, release.digest) == (NAME, CHAMPION, champion.digest)
    assert find_update(Registry(copy.store_uri), FollowTarget(NAME, "champion", copy.slot, 3)) is None
    assert local_rollback.roll_back(copy.slot, NAME, at="2026-11-30T00:00:00+00:00").release.version == FORMER


def test_a_server_responds_from_the_slot_the_ledger_and_a_state_token(copy: Root, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    settings = {
        "SLOT": copy.slot,
        "PORT": port,
        "LEDGER": "on",
        "LEDGER_DAYS": FOREVER_DAYS,
        "STATE_KEYS": EXPECTED["state"]["key"],
        "GRACE_S": 3,
    }
    environment = {f"FORECASTER_SERVING_{name}": str(value) for name, value in settings.items()}
    with (
        start_process(["-m", "serving"], tmp_path, log=log, **environment) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):

        def ready() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                return client.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready, pause=0.1)
        found = client.get("/v1/accuracy")
        assert found.status_code == 200, found.text
        accuracy = found.json()
        accuracy["overall"] = without_added_scores(accuracy["overall"])
        accuracy["by_horizon"] = [without_added_scores(scores) for scores in accuracy["by_horizon"]]
        check_same(accuracy, EXPECTED["ledger"]["accuracy"])
        for what in ("forecast", "state"):
            answer = client.post("/v1/forecast", json=EXPECTED[what]["asked"])
            assert answer.status_code == 200, answer.text
            check_same(answer.json(), EXPECTED[what]["answer"], where=what)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()[-3000:]
