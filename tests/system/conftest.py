"""Fixtures of the system tests: a database that is migrated once, and a server that starts commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipelines.conftest import fresh_root, migrated_root, noise_data
from tests.system.fork_server import ForkServer, running_fork_server

__all__ = ["fresh_root", "migrated_root", "noise_data"]


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    with running_fork_server() as server:
        yield server
