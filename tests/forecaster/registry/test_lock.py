"""The lock of a registry: one holder per store among the processes of one machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from forecaster.errors import RegistryError
from forecaster.registry import lock
from forecaster.registry.lock import lock_registry

SERVER = "http://me:s3cret@mlflow.example:5000"


@pytest.fixture(autouse=True)
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock files in the folder of the test, for which nobody waits."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("_DATABASE_TIMEOUT_S", "_SERVER_TIMEOUT_S"):
        monkeypatch.setattr(lock, name, 0.0)


@pytest.mark.parametrize("uri", [SERVER, "postgresql://host/mlflow", "sqlite:///{}/mlflow.db"])
def test_a_store_is_locked_by_one_holder_at_a_time(uri: str, tmp_path: Path) -> None:
    uri = uri.format(tmp_path)
    with lock_registry(uri):
        with (
            pytest.raises(RegistryError, match=r"free within 0 s; another process still holds it \("),
            lock_registry(uri),
        ):
            pass
        with lock_registry("http://other.example:5000"):
            pass
    with lock_registry(uri):
        pass


def test_a_server_has_one_lock_under_each_spelling_and_its_password_is_in_no_name(tmp_path: Path) -> None:
    with lock_registry(SERVER):
        [path] = tmp_path.iterdir()
        assert "s3cret" not in path.name
        with pytest.raises(RegistryError) as error, lock_registry(f"{SERVER}/"):
            pass
    assert "s3cret" not in str(error.value)


def test_an_exception_releases_the_lock() -> None:
    with pytest.raises(KeyError), lock_registry(SERVER):
        raise KeyError
    with lock_registry(SERVER):
        pass
