"""The secrets of the stack are created once, for their readers alone, and the registry starts with them and not without."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.manifests import DOCKER, create_secrets, load_script
from tests.system.processes import make_environment


def test_secrets_are_random_private_and_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    names = create_secrets(first, database="db.example:5433")
    create_secrets(second, database="db.example:5433")
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    for name in names:
        assert stat.S_IMODE((first / name).stat().st_mode) == 0o444
        assert (first / name).read_text() != (second / name).read_text()
    password = (first / "ledger_database_password").read_text().strip()
    assert (first / "ledger").read_text() == f"postgresql+psycopg://ledger:{password}@db.example:5433/ledger\n"
    contents = {name: (first / name).read_text() for name in names}
    (first / "grafana_password").unlink()
    assert create_secrets(first, database="elsewhere") == ["grafana_password"]
    assert {name for name in names if (first / name).read_text() != contents[name]} == {"grafana_password"}


def registry_variables(folder: Path) -> dict[str, str]:
    names = {
        "REGISTRY_DATABASE_FILE": "registry_database",
        "REGISTRY_USERS_DATABASE_FILE": "registry_users_database",
        "REGISTRY_ADMIN_PASSWORD_FILE": "registry_admin_password",
        "REGISTRY_SESSION_KEY_FILE": "registry_session_key",
    }
    return {name: str(folder / file) for name, file in names.items()}


def test_the_registry_has_its_secrets_in_no_command_line(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    create_secrets(secrets, database="postgres")
    environ = registry_variables(secrets) | {"REGISTRY_ALLOWED_HOSTS": "registry:5000"}
    configuration = tmp_path / "auth.ini"
    script = load_script("start_registry")
    environment = script.build_environment(environ, configuration=configuration)
    command = " ".join(script.build_command(environ))
    assert "--app-name=basic-auth" in command
    assert "--allowed-hosts=registry:5000" in command
    assert not [path.name for path in secrets.iterdir() if path.read_text().strip() in command]
    assert environment["MLFLOW_BACKEND_STORE_URI"].endswith("@postgres/registry")
    assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"] == (secrets / "registry_admin_password").read_text().strip()
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
    assert "@postgres/registry_users" in configuration.read_text()


@pytest.mark.integration
@pytest.mark.parametrize("content", [None, "\n", "REPLACE-ME\n"])
def test_the_registry_does_not_start_with_a_missing_or_placeholder_secret(tmp_path: Path, content: str | None) -> None:
    secrets = tmp_path / "secrets"
    create_secrets(secrets, database="postgres")
    path = secrets / "registry_admin_password"
    path.unlink()
    if content is not None:
        path.write_text(content)
    completed = subprocess.run(
        [sys.executable, DOCKER / "start_registry.py"],
        env=make_environment(**registry_variables(secrets)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 2
    assert "REGISTRY_ADMIN_PASSWORD_FILE" in completed.stderr


@pytest.mark.integration
def test_the_databases_are_not_created_with_a_placeholder(tmp_path: Path) -> None:
    create_secrets(tmp_path, database="postgres")
    (tmp_path / "ledger_database_password").unlink()
    (tmp_path / "ledger_database_password").write_text("change_me")
    completed = subprocess.run(
        ["sh", DOCKER / "stack/postgres/databases.sh"],
        env=make_environment(SECRETS=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 2
    assert f"Expected a password in {tmp_path}/ledger_database_password" in completed.stderr
