"""One server for all attacks that need no settings of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.hostile.target import Target, running_target


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with running_target(tmp_path_factory.mktemp("target")) as running:
        yield running
