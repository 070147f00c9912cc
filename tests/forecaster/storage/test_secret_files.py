"""Secrets are read from the files that NAME_FILE names, and no message repeats one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forecaster.storage.secret_files import SECRET_VARIABLES, InvalidSecret, load_secret_files
from serving.settings import ENV_PREFIX, Settings
from tests.system.processes import make_environment

SECRET = "s3cr3t-of-a-state" * 3


def test_every_secret_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    environ = {f"{name}_FILE": str(tmp_path / "secret") for name in SECRET_VARIABLES} | {"OTHER_FILE": "kept"}
    load_secret_files(environ)
    assert environ == dict.fromkeys(SECRET_VARIABLES, SECRET) | {"OTHER_FILE": "kept"}


def test_every_secret_setting_of_the_service_has_a_file() -> None:
    secret = {f"{ENV_PREFIX}{name.upper()}" for name, field in Settings.model_fields.items() if not field.repr}
    assert secret - {f"{ENV_PREFIX}KEYS"} <= set(SECRET_VARIABLES), "KEYS has the setting KEYS_FILE"
    assert "keys_file" in Settings.model_fields


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b" \n", "found nothing"),
        (b"\xff" * 40, "not UTF-8"),
        (b"x" * 70_000, "more than 65536 bytes"),
        (b"postgresql+psycopg://ledger:CHANGE-ME@db/ledger", "the placeholder of an example"),
    ],
)
def test_an_unusable_file_is_an_error_without_its_content(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    environ = {"FORECASTER_SQL_URL_FILE": str(path)}
    with pytest.raises(InvalidSecret) as error:
        load_secret_files(environ)
    assert found in str(error.value)
    assert "CHANGE-ME" not in str(error.value)
    assert "FORECASTER_SQL_URL_FILE" in str(error.value)
    assert "FORECASTER_SQL_URL" not in environ


@pytest.mark.integration
@pytest.mark.parametrize("program", ["serving", "serving.deployment.follower", "pipelines"])
def test_every_program_rejects_a_secret_that_is_set_twice(tmp_path: Path, program: str) -> None:
    (tmp_path / "keys").write_text("k" * 40)
    keys = f"{ENV_PREFIX}STATE_KEYS"
    completed = subprocess.run(
        [sys.executable, "-m", program, *(["serve"] if program == "pipelines" else [])],
        env=make_environment(**{keys: SECRET, f"{keys}_FILE": str(tmp_path / "keys")}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 2
    assert f"Expected either {keys} or {keys}_FILE; found both." in completed.stdout + completed.stderr
    assert SECRET not in completed.stdout + completed.stderr
