"""What blocks of a page run with: a folder with the tables that pages name, a service on this machine, one namespace."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pandas as pd
import uvicorn

from docs.generator.blocks import Block, ServedModel, Session, find_blocks
from forecaster import Forecaster
from forecaster.bundle.artifact import compute_bundle_digest
from forecaster.registry.registry import Registry
from pipelines.commands.options import RootOptions
from pipelines.promotion.promote import fetch_bundle
from serving.deployment.releases import Release, publish, staging
from serving.routes.app import build_application
from serving.settings import Settings

_PRETRAINED = ServedModel()


def make_table() -> pd.DataFrame:
    """Returns the monthly series that the pages name, with a static column."""
    rng = np.random.default_rng(0)
    names = ("T1", "T12", "ward 7", "store 1", "T2", "T3")
    season = np.sin(np.arange(84) * np.pi / 6)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "unique_id": name,
                    "ds": pd.date_range("2015-01-01", periods=84, freq="MS"),
                    "y": 20 + 5 * index + 4 * season + rng.normal(size=84).round(2),
                    "region": "north" if index % 2 else "south",
                }
            )
            for index, name in enumerate(names)
        ],
        ignore_index=True,
    )


def make_hourly_table() -> pd.DataFrame:
    """Returns one hourly series with a covariate, a static column and a channel."""
    hours = pd.date_range("2026-01-01", periods=96, freq="h")
    columns = {"holiday": (hours.day_of_year == 1).astype(int), "region": "north", "temperature": np.arange(96.0)}
    return pd.DataFrame({"unique_id": "load", "ds": hours, "y": np.sin(np.arange(96) * np.pi / 12), **columns})


def fill_folder(folder: Path) -> None:
    """Writes the tables that the pages name into a folder, and the pretrained network as the bundle BUNDLE."""
    table = make_table()
    table.to_csv(folder / "data.csv", index=False)
    table[["unique_id", "ds", "y"]].to_csv(folder / "sales.csv", index=False)
    make_hourly_table().to_parquet(folder / "data.parquet")
    Forecaster.pretrained("MS", horizon=12).save(folder / "BUNDLE")
    (folder / "bundle").symlink_to("BUNDLE")


@contextmanager
def open_session(folder: Path) -> Iterator[Session]:
    """The state of a page; its service starts with the first request, unless `serve` started it, and ends with the session."""
    running: dict[str, _Service] = {}

    def start(model: ServedModel = _PRETRAINED) -> str:
        if "page" not in running:
            slot = folder / "slot" if model.name is None else _deploy_champion(model)
            settings = {"slot": slot, "pretrained": model.name is None, **dict(model.settings)}
            running["page"] = _start_service(Settings.model_validate(settings))
        return running["page"].address

    def start_with_covariates() -> str:
        if "page" in running and not running["page"].is_pretrained:
            return running["page"].address
        if "covariates" not in running:
            slot = folder / "slot-with-covariates"
            with staging(slot) as draft:
                save_model_with_covariate(draft / "bundle")
                digest = compute_bundle_digest(draft / "bundle")
                publish(slot, draft / "bundle", Release(name="stores", version="1", digest=digest))
            running["covariates"] = _start_service(Settings(slot=slot))
        return running["covariates"].address

    try:
        yield Session(start, start_with_covariates)
    finally:
        for service in running.values():
            service.server.should_exit = True
            service.thread.join()


class _Service(NamedTuple):
    server: uvicorn.Server
    thread: threading.Thread
    address: str
    is_pretrained: bool


def _start_service(settings: Settings) -> _Service:
    """Starts a service in a thread of this process, and waits until it is ready."""
    application = build_application(settings)
    application.slot.reload_if_changed()
    server = uvicorn.Server(uvicorn.Config(application.app, log_config=None, lifespan="on"))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    service = _Service(server, thread, f"http://127.0.0.1:{listener.getsockname()[1]}", settings.pretrained)
    response = httpx.get(f"{service.address}/readyz", timeout=60)
    if response.status_code != httpx.codes.OK:
        server.should_exit = True
        thread.join()
        raise AssertionError(f"the service does not become ready: {response.text}")
    return service


def _deploy_champion(model: ServedModel) -> Path:
    """Puts the champion of a registered model into the slot of its root, as a follower does; returns the slot."""
    options = RootOptions() if model.root is None else RootOptions(root=Path(model.root))
    root = options.open_root()
    slot = root.slot.absolute()
    version = Registry(root.store_uri).resolve(str(model.name), "champion")
    with staging(slot) as draft:
        shutil.copytree(fetch_bundle(version, root), draft / "bundle")
        publish(slot, draft / "bundle", Release(name=version.name, version=version.number, digest=version.digest))
    return slot


def save_model_with_covariate(path: Path) -> None:
    """Fits a daily model of few steps, with the covariate `promo` and a distribution, and saves its bundle."""
    promo = (np.arange(60) % 5 == 0).astype(float)
    days = pd.date_range("2025-11-01", periods=60, freq="D")
    df = pd.DataFrame({"unique_id": "store 1", "ds": days, "y": 30 + 10 * promo, "promo": promo})
    training = {"steps": 4, "epoch_steps": 2, "batch": 8, "valid_windows": 2}
    fields = {"name": "stores", "context": 8, "min_history": 2, "horizon": 3, "head": {"kind": "student_t"}}
    spec = fields | {"covariates": ["promo"], "network": {"hidden": 4}, "training": training}
    Forecaster(spec=spec).fit(df, test_windows=0, progress=False).save(path)


def run_blocks(page: Path, session: Session, *, accept: Callable[[Block], bool]) -> int:
    """Runs blocks of a page in their order, in one namespace and the working folder; returns their number."""
    blocks = [block for block in find_blocks(page, session.run_shell) if not block.skip_reason and accept(block)]
    for block in blocks:
        namespace = block.example.namespace
        namespace.setdefault("frame", pd.read_csv("sales.csv", parse_dates=["ds"]))
        session.run(block)
    return len(blocks)
