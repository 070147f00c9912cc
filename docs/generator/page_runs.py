"""What blocks of a page run with: a folder with the tables that pages name, a service on this machine, one namespace."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import uvicorn

from docs.generator.blocks import Block, Session, find_blocks
from forecaster import Forecaster
from forecaster.registry.registry import Registry
from pipelines.commands.options import RootOptions
from pipelines.promotion.promote import fetch_bundle
from serving.deployment.releases import Release, publish, staging
from serving.routes.app import build_application
from serving.settings import Settings


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
    running: list[tuple[uvicorn.Server, threading.Thread, str]] = []

    def start(name: str | None = None) -> str:
        if not running:
            if name is not None:
                _deploy_champion(name, folder / "slot")
            application = build_application(Settings(slot=folder / "slot", pretrained=name is None))
            application.slot.reload_if_changed()
            server = uvicorn.Server(uvicorn.Config(application.app, log_config=None, lifespan="on"))
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            running.append((server, thread, f"http://127.0.0.1:{listener.getsockname()[1]}"))
            while not server.started:
                time.sleep(0.005)
        return running[0][2]

    try:
        yield Session(start)
    finally:
        for server, thread, _ in running:
            server.should_exit = True
            thread.join()


def _deploy_champion(name: str, slot: Path) -> None:
    root = RootOptions().open_root()
    version = Registry(root.store_uri).resolve(name, "champion")
    with staging(slot) as draft:
        shutil.copytree(fetch_bundle(version, root), draft / "bundle")
        publish(slot, draft / "bundle", Release(name=name, version=version.number, digest=version.digest))


def run_blocks(page: Path, session: Session, *, accept: Callable[[Block], bool]) -> int:
    """Runs blocks of a page in their order, in one namespace and the working folder; returns their number."""
    blocks = [block for block in find_blocks(page, session.run_shell) if not block.skip_reason and accept(block)]
    for block in blocks:
        namespace = block.example.namespace
        namespace.setdefault("frame", pd.read_csv("sales.csv", parse_dates=["ds"]))
        session.run(block)
    return len(blocks)
