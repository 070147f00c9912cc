"""Secrets of the environment appear in nothing that a retraining writes or prints: every file and every line is searched."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from forecaster.registry.registry import Registry, create_client
from pipelines.redaction import SQL_URL_VARIABLE
from pipelines.settings import Root
from pipelines.training.retrain_key import RETRAIN_KEY_TAG
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.pipelines.postgres_server import PASSWORD, QUOTED, running_postgres
from tests.system.processes import run_forecaster, write_config

pytestmark = pytest.mark.integration
QUERY = "SELECT unique_id, ds, y FROM readings"
PLANTED_SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-key",
    "AWS_SESSION_TOKEN": "planted-aws-token",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "PGPASSWORD": "planted-pg-password",
}
SEARCHED_STRINGS = [text.encode() for text in (*PLANTED_SECRETS.values(), PASSWORD, QUOTED, "w0rd")]


def files_with_secrets(folder: Path) -> dict[str, list[bytes]]:
    """Returns the files that contain planted secrets."""
    secrets_by_file = {}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content += gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b""
            secrets = [secret for secret in SEARCHED_STRINGS if secret in content]
            if secrets:
                secrets_by_file[str(path)] = secrets
    return secrets_by_file


def test_the_search_finds_planted_secrets(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(f"x{PASSWORD}x")
    (tmp_path / "b").write_bytes(gzip.compress(b"planted-aws-key"))
    assert {Path(path).name for path in files_with_secrets(tmp_path)} == {"a", "b"}


@pytest.mark.nightly
def test_no_file_and_no_log_line_contains_a_secret(fresh_root: Root, tmp_path: Path) -> None:
    with running_postgres() as address:
        import psycopg

        with psycopg.connect(address) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE readings (unique_id text, ds timestamp, y float8)")
            rows = [
                (series_id, time.to_pydatetime(), y)
                for series_id, time, y in make_noise_frame(4).itertuples(index=False)
            ]
            cursor.executemany("INSERT INTO readings VALUES (%s, %s, %s)", rows)
        write_config(tmp_path / "small.yaml", make_small_spec())
        environment = {**PLANTED_SECRETS, SQL_URL_VARIABLE: address}
        command = [
            "retrain",
            "--sql",
            QUERY,
            "--config",
            "small.yaml",
            "--cutoff",
            "2026-01-03T06:00",
            "--root",
            "root",
        ]
        fault = {"FORECASTER_TEST": "1", "FORECASTER_FAILPOINTS": "checkpoint.written=kill"}
        output = ""
        for extra in (fault, {}, {}):  # the first leaves a checkpoint, the second resumes, the third has nothing to do
            completed = run_forecaster(*command, folder=tmp_path, **environment, **extra)
            output += completed.stdout + completed.stderr
        assert completed.returncode in (0, 3), output
        scheduled = run_forecaster(*command, "--cron", "0 3 * * *", folder=tmp_path, **environment)
        wrong_user = run_forecaster(
            *command, folder=tmp_path, **environment | {SQL_URL_VARIABLE: address.replace("reader:", "nobody:")}
        )
        invalid_url = run_forecaster(
            *command, folder=tmp_path, **environment | {SQL_URL_VARIABLE: address.replace("127.0.0.1", "[")}
        )
        assert (scheduled.returncode, wrong_user.returncode, invalid_url.returncode) == (0, 1, 1)
        output += "".join(process.stdout + process.stderr for process in (scheduled, wrong_user, invalid_url))
    root = fresh_root
    [version] = Registry(root.store_uri).list_versions("small")
    client = create_client(root.store_uri)
    assert version.run_id is not None
    run = client.get_run(version.run_id)
    assert run.data.tags["asked_cutoff"] == "2026-01-03T06:00"
    assert run.data.tags["cutoff"] < "2026-01-03T06:00"
    assert run.data.tags[RETRAIN_KEY_TAG]
    assert QUERY in str(run.inputs.dataset_inputs[0].dataset.source)
    assert files_with_secrets(root.path) == {}
    assert not [secret for secret in SEARCHED_STRINGS if secret.decode() in f"{output} {run.to_dictionary()}"]
