"""Makes the artefacts of version 0.1 that the compatibility tests read. It runs with the code of commit 38ee1a7 only:

    git worktree add ../version-0.1 38ee1a7 && cd ../version-0.1 && make install
    cp -r OURS/tests/compatibility tests/ && .venv/bin/python -m tests.compatibility.make_artifacts OUT

It writes `state.tar.xz` and `expected.json` to the folder OUT. Everything is done as a user would do it, through the command line
of that version; only the service is called within this process. Random parts (run ids, the salt of the ledger) differ each time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from forecaster.ledger.adapting import adapt
from forecaster.predict import Predictor
from pipelines.audit import AuditLog
from pipelines.jobs import Book
from pipelines.releases import recorded
from pipelines.schedule import Scheduler
from pipelines.train import train
from serving.follower import Target, take
from serving.slot import load_bundle

from forecaster import artifact
from forecaster.ledger.records import LEVELS
from forecaster.ledger.store import Ledger
from forecaster.registry import CHALLENGER, CHAMPION, FORMER, Registry, connect
from forecaster.series import Series
from pipelines.cli import main
from pipelines.settings import Root
from pipelines.sources import Data, read, read_spec
from tests.compatibility import relocation
from tests.serving.conftest import Client, application

KEY = "the-key-that-signs-states-in-the-tests-of-compatibility"
HORIZON, SERIES, MONTHS = 6, 12, 72
QUANTILES = [0.1, 0.5, 0.9]
SPEC: dict[str, Any] = {
    "name": "monthly",
    "context": 24,
    "horizon": HORIZON,
    "min_history": 6,
    "reads": "history",
    "season": 12,
    "base": "seasonal_naive",
    "calendar": ["month"],
    "static": ["region"],
    "group": "region",
    "network": {"cell": "gru", "layers": 1, "hidden": 6},
    "training": {"steps": 20, "epoch_steps": 10, "batch": 8, "learning_rate": 0.01, "valid_windows": 3},
}


def monthly() -> pd.DataFrame:
    """Twelve monthly series of two regions: a level, a trend, a season of twelve months and noise."""
    draw, clock = np.random.default_rng(0), np.arange(MONTHS)
    frames = []
    for number in range(SERIES):
        season = 8 * np.sin(2 * np.pi * (clock + number) / 12)
        y = 50 + 5 * number + 0.2 * clock + season + 2 * draw.normal(size=MONTHS)
        stamps = pd.date_range("2020-01-01", periods=MONTHS, freq="MS")
        region = ("north", "south")[number % 2]
        frames.append(pd.DataFrame({"unique_id": f"series_{number}", "ds": stamps, "region": region, "y": y.round(3)}))
    return pd.concat(frames)


def item(one: Series, *, until: int, since: int = 0, **fields: Any) -> dict[str, Any]:
    """Months of a series, as an item of a request."""
    asked: dict[str, Any] = {"id": one.id, "y": one.y[since:until].tolist(), "static": dict(one.static)} | fields
    return asked if since else asked | {"start": f"{one.start.isoformat()}Z", "freq": one.freq}


def post(client: Client, path: str, **asked: Any) -> dict[str, Any]:
    """The answer to a request, which must be good."""
    answer = client.post(path, json=asked)
    if answer.status_code != 200:
        raise RuntimeError(answer.text)
    told: dict[str, Any] = answer.json()
    return told


def run(*arguments: str) -> None:
    """A command of the command line, in this process; it must end well."""
    try:
        main(arguments)
    except SystemExit as left:
        if left.code:
            raise RuntimeError(f"{arguments}: {left.code}") from left


def wait_until(ready: Callable[[], object]) -> None:
    """Waits for another thread."""
    deadline = time.monotonic() + 120
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError("it took too long")
        time.sleep(0.1)


def release(root: Root, *, seed: int, promote: tuple[str, ...]) -> None:
    """Trains, registers and promotes a version, and puts it into the slot as a follower would."""
    before = set(root.bundles.glob("[!.]*"))
    run("train", "monthly.csv", "--config", "monthly.yaml", "--seed", str(seed), "--root", "state")
    [bundle] = set(root.bundles.glob("[!.]*")) - before
    run("register", str(bundle.relative_to(Path.cwd())), "--root", "state")
    run("promote", "monthly", "--root", "state", *promote)
    registry = Registry(root.store)
    take(registry, registry.resolve("monthly", CHAMPION), Target("monthly", CHAMPION, root.slot, 3))


def serve(root: Root, panel: list[Series]) -> dict[str, Any]:
    """Forecasts, states, actuals and the accuracy of the champion, from a service with a ledger."""
    one, last = panel[0], MONTHS
    with application(root.slot) as make:
        client = make(load=load_bundle, ledger="on", state_keys=KEY)
        origins = range(last - 9, last, 3)
        for until in origins:
            series = [item(each, until=until) for each in panel[:4]]
            post(client, "/v1/forecast", series=series, horizon=HORIZON, levels=QUANTILES)
        wait_until(lambda: client.get("/v1/accuracy").json()["forecasts"] == 4 * len(origins))
        came = [
            {"id": each.id, "start": "2025-04-01T00:00:00Z", "freq": "MS", "y": each.y[-9:].tolist()}
            for each in panel[:4]
        ]
        credited = post(client, "/v1/actuals", series=came)
        asked = {"series": [item(one, until=last)], "horizon": HORIZON, "levels": QUANTILES}
        answer = post(client, "/v1/forecast", **asked)
        held = post(client, "/v1/forecast", series=[item(one, until=last - 3)], horizon=HORIZON, return_state=True)
        state = held["forecasts"][0]["state"]
        going_on = {
            "series": [item(one, since=last - 3, until=last, state=state)],
            "horizon": HORIZON,
            "levels": QUANTILES,
        }
        from_state = post(client, "/v1/forecast", **going_on)
        wait_until(lambda: client.get("/v1/accuracy").json()["forecasts"] == 4 * len(origins) + 1)  # one origin is new
        accuracy = client.get("/v1/accuracy").json()
    return {
        "forecast": {"asked": asked, "answer": answer},
        "state": {"key": KEY, "asked": going_on, "answer": from_state},
        "ledger": {"actuals": came, "credited": credited, "accuracy": accuracy},
    }


def learn(root: Root) -> dict[str, Any]:
    """What late actuals teach about the intervals of the champion; kept in the ledger."""
    ledger = Ledger(f"sqlite:///{root.slot}/ledger.db")
    digest = Registry(root.store).resolve("monthly", CHAMPION).digest
    drift = adapt(ledger, digest, at=time.time())
    ledger.close()
    return {"digest": digest, "levels": list(LEVELS), "shifts": drift.at(LEVELS).tolist()}


def schedule(root: Root) -> dict[str, Any]:
    """A job that ran once, and one whose call is queued and has not begun."""
    book = Book(root.schedule)
    cron = ["--cron", "0 3 * * *", "--cron-zone", "Europe/Berlin", "--root", "state"]

    def keep(config: str, *options: str) -> str:
        run("retrain", "monthly.csv", "--config", config, *options, *cron)
        name = read_spec(Path(config)).name
        job = book.job(name)
        assert job is not None
        book.keep(job.model_copy(update={"since": datetime.now(UTC) - timedelta(days=2)}))
        return name

    ran = keep("monthly.yaml", "--seed", "2")
    scheduler = Scheduler(root)
    at_work = threading.Thread(target=scheduler.serve)
    at_work.start()
    wait_until(lambda: book.state(ran).last is not None and book.state(ran).waiting is None)
    scheduler.stop.set()
    at_work.join()
    keep("queued.yaml")
    Scheduler(root).consider()
    return {
        "jobs": [job.model_dump(mode="json", exclude={"folder"}) for job in book.jobs()],
        "states": {job.name: book.state(job.name).model_dump(mode="json") for job in book.jobs()},
    }


def interrupt() -> None:
    """A training that is killed after its first epoch."""
    environment = {**os.environ, "FORECASTER_TEST": "1", "FORECASTER_FAILPOINTS": "checkpoint.written=kill"}
    command = ["-m", "pipelines.cli", "train", "monthly.csv", "--config", "interrupted.yaml", "--root", "state"]
    done = subprocess.run([sys.executable, *command], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, done.returncode


def resumed(root: Root, one: Series, elsewhere: Path) -> dict[str, Any]:
    """What the killed training comes to when it goes on, in a copy of all."""
    shutil.copytree(root.path.parent, elsewhere, symlinks=True)
    relocation.relocate(elsewhere, str(root.path.parent), str(elsewhere))
    [checkpoint] = root.checkpoints.glob("*/run_id")
    trained = train(Data("monthly.csv"), read_spec(Path("interrupted.yaml")), Root(elsewhere / "state"))
    assert trained.run_id == checkpoint.read_text()
    mean = Predictor(artifact.load(trained.bundle)).forecast(one, HORIZON).mean
    return {"run_id": trained.run_id, "forecast": mean.tolist(), "scores": trained.scores}


def registered(root: Root) -> dict[str, Any]:
    """What the registry, its runs and the audit log say."""
    registry, client = Registry(root.store), connect(root.store)
    versions = registry.versions("monthly")
    judged = recorded(versions[-1], root)
    assert judged is not None
    runs = {}
    for version in versions:
        assert version.run_id is not None
        run = client.get_run(version.run_id)
        runs[version.number] = {"params": run.data.params, "metrics": run.data.metrics, "status": run.info.status}
    return {
        "versions": [version._asdict() for version in versions],
        "aliases": {alias: registry.resolve("monthly", alias).number for alias in (CHAMPION, FORMER, CHALLENGER)},
        "tags": {version.number: registry.tags(version) for version in versions},
        "runs": runs,
        "audit": [str(line) for line in AuditLog(root.audit).read().lines],
        "verdict": {
            "promote": judged.verdict.promote,
            "failed": list(judged.verdict.failed),
            "against": judged.against,
        },
    }


def bundles(root: Root, one: Series) -> dict[str, Any]:
    """What each registered bundle forecasts, by the number of its version."""
    told = {}
    for version in Registry(root.store).versions("monthly"):
        [folder] = [path for path in root.bundles.glob("[!.]*") if artifact.digest(path) == version.digest]
        answer = Predictor(artifact.load(folder)).forecast(one, HORIZON, levels=QUANTILES)
        quantiles = {str(level): values.tolist() for level, values in answer.quantiles.items()}
        told[version.number] = {"bundle": folder.name, "mean": answer.mean.tolist(), "quantiles": quantiles}
    return told


def prune(root: Root) -> None:
    """Takes away copies and pictures, which are most of the bytes and which no program reads."""
    shutil.rmtree(root.fetched)
    for path in (root.path / "mlruns").rglob("*"):
        if path.suffix in (".png", ".webp") or path.name == "report.html":
            path.unlink()
    for path in root.verdicts.glob("*/report.html"):
        path.unlink()


def make(out: Path) -> None:
    """Makes everything in a folder that goes away."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place).resolve() / "work"
        work.mkdir()
        os.chdir(work)
        monthly().to_csv("monthly.csv", index=False)
        longer = {"steps": 30, "seed": 5}
        for name, changes in (("monthly", {}), ("queued", {}), ("interrupted", longer)):
            fields = SPEC | {"name": name, "training": SPEC["training"] | changes}
            Path(f"{name}.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
        root = Root(work / "state")
        release(root, seed=0, promote=("--force", "--reason", "the first of them"))
        release(root, seed=1, promote=("--force", "--reason", "another seed"))
        panel = list(read(Data("monthly.csv").for_spec(read_spec(Path("monthly.yaml")))).series)
        expected = {"bundles": bundles(root, panel[0]), **serve(root, panel)}
        expected["ledger"]["drift"] = learn(root)
        expected["schedule"] = schedule(root)
        expected["bundles"] = bundles(root, panel[0])
        interrupt()
        expected["resumed"] = resumed(root, panel[0], Path(place).resolve() / "elsewhere")
        expected["registry"] = registered(root)
        prune(root)
        relocation.relocate(work, sys.prefix, f"{relocation.PLACEHOLDER}/.venv")
        relocation.relocate(work, str(work), relocation.PLACEHOLDER)
        relocation.check(work, forbidden=[place, sys.prefix])
        out.mkdir(parents=True, exist_ok=True)
        relocation.pack(work, out / "state.tar.xz")
        told = json.dumps(expected, indent=1).replace(str(work), relocation.PLACEHOLDER)
        (out / "expected.json").write_text(told + "\n")
        os.chdir(out)


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
