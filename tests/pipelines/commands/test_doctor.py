"""The doctor command on a healthy machine, and on every fault that it detects."""

from __future__ import annotations

import http.server
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from forecaster.bundle import artifact
from pipelines.cli import main
from tests.factories import make_fitted_model, make_spec
from tests.slow_servers import dripping_server
from tests.system.processes import CHECKOUT, free_port, make_environment

pytestmark = pytest.mark.integration

HEAVY_PACKAGES = ("torch", "mlflow", "pytorch_lightning", "sqlalchemy", "bentoml")


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECASTER_SERVING_PORT", str(free_port()))
    for name in ("FORECASTER_SERVING_SLOT", "FORECASTER_SERVING_LEDGER", "MLFLOW_TRACKING_URI", "FORECASTER_ROOT"):
        monkeypatch.delenv(name, raising=False)


def run_doctor(
    root: Path, capsys: pytest.CaptureFixture[str], *options: str, exit_code: int = 0
) -> dict[str, tuple[str, str]]:
    """Returns the status and the message of each check, by its name."""
    with pytest.raises(SystemExit) as raised:
        main(["doctor", "--json", "--root", str(root), *options])
    rows = json.loads(capsys.readouterr().out)
    assert (raised.value.code or 0) == exit_code, rows
    return {row["name"]: (row["word"], row["told"]) for row in rows}


def fill_slot(root: Path) -> Path:
    """Writes a slot as a follower does; returns the folder of the bundle."""
    bundle = root / "slot" / "releases" / "release-3" / "bundle"
    digest = artifact.save_bundle(make_fitted_model(make_spec()), bundle, card="")
    (bundle.parent / "release.json").write_text(json.dumps({"name": "small", "version": "3", "digest": digest}))
    (root / "slot" / "current").symlink_to("releases/release-3")
    return bundle


def test_an_empty_root_is_healthy_and_stays_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diagnostics = run_doctor(tmp_path / "root", capsys)
    assert {"python", "packages", "kernel", "processors", "root", "store", "slot", "ledger", "port"} == set(diagnostics)
    assert not {name for name, (status, _) in diagnostics.items() if status == "bad"}
    assert not (tmp_path / "root").exists()


def test_an_empty_database_counts_as_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mlflow.db").touch()
    status, message = run_doctor(tmp_path, capsys)["store"]
    assert status == "ok"
    assert "none yet" in message


def test_a_root_in_use_is_described(migrated_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(migrated_root / "mlflow.db", tmp_path)
    fill_slot(tmp_path)
    diagnostics = run_doctor(tmp_path, capsys, "--deep")
    assert "0 models" in diagnostics["store"][1]
    assert diagnostics["slot"][1].startswith("small version 3 (")
    assert diagnostics["model"][0] == diagnostics["torch"][0] == "ok"
    (tmp_path / "slot" / "pinned.json").write_text("{}")
    assert "rolled back here" in run_doctor(tmp_path, capsys)["slot"][1]


def test_a_damaged_slot_and_invalid_stores_exit_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = fill_slot(tmp_path)
    (bundle / "weights.safetensors").write_bytes(b"corrupt")
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    (tmp_path / "slot" / "ledger.db").write_bytes(b"no database" * 100)
    diagnostics = run_doctor(tmp_path, capsys, exit_code=1)
    assert {name for name, (status, _) in diagnostics.items() if status == "bad"} == {"slot", "store", "ledger"}
    assert "weights.safetensors" in diagnostics["slot"][1]


def test_the_paths_of_a_copied_root_are_reported_and_moved(
    migrated_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(migrated_root / "mlflow.db", tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        query = (
            "INSERT INTO experiments (name, artifact_location, lifecycle_stage, workspace) VALUES (?, ?, 'active', ?)"
        )
        database.execute(query, ("small", "file:///old/root/mlruns", "default"))
    status, message = run_doctor(tmp_path, capsys, exit_code=1)["artifacts"]
    assert status == "bad"
    assert "1 paths outside the root (file:///old/root/mlruns, ...)" in message
    assert "--move-root" in message
    assert run_doctor(tmp_path, capsys, "--move-root")["artifacts"][0] == "ok"


def test_a_link_of_the_slot_that_leads_nowhere_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "slot").mkdir()
    (tmp_path / "slot" / "current").symlink_to("current")
    status, message = run_doctor(tmp_path, capsys, exit_code=1)["slot"]
    assert status == "bad"
    assert "the link leads to no folder" in message


@pytest.mark.parametrize(
    ("requirements", "status", "message"),
    [
        (
            ["numpy>=2", "no-such-package>=1; extra == 'more'", "pandas>=99; extra == 'more'"],
            "ok",
            "more lacks no-such",
        ),
        (["numpy>=2", "pandas>=2; extra == 'more'"], "ok", "extras: more"),
        (["numpy>=99"], "bad", "needed is >=99"),
        (["pandas>=99; extra == 'more'"], "bad", "needed is >=99"),
        (["no-such-package>=1"], "bad", "no-such-package missing"),
    ],
)
def test_installed_packages_are_checked_against_requirements(
    requirements: list[str],
    status: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: requirements)
    diagnostic = run_doctor(tmp_path, capsys, exit_code=int(status == "bad"))["packages"]
    assert diagnostic[0] == status
    assert message in diagnostic[1]


def test_an_unwritable_root_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run_doctor(tmp_path / "file" / "root", capsys, exit_code=1)["root"][0] == "bad"


class OtherHttpServer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def test_a_process_on_the_port_and_a_non_mlflow_server_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), OtherHttpServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("FORECASTER_SERVING_PORT", str(server.server_port))
        diagnostics = run_doctor(tmp_path, capsys, "--tracking-uri", address, exit_code=1)
        server.shutdown()
    assert diagnostics["port"] == ("bad", f"{address} is used by another program (404); use serve --port")
    assert diagnostics["store"] == ("bad", f"{address} does not respond as MLflow (404)")


def test_no_secret_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql+psycopg://me:s3cret@127.0.0.1:1/db"
    monkeypatch.setenv("FORECASTER_SERVING_LEDGER", url)
    monkeypatch.setenv("FORECASTER_SQL_URL", url)
    monkeypatch.setenv("FORECASTER_SERVING_REGISTRY", f"{url}2")
    diagnostics = run_doctor(tmp_path, capsys, "--tracking-uri", url, exit_code=1)
    assert {name for name, (status, _) in diagnostics.items() if status == "bad"} == {"store", "registry", "ledger"}
    assert all("refused" in diagnostics[name][1] for name in ("store", "registry", "ledger"))
    assert "s3cret" not in str(diagnostics)


def test_a_server_that_sends_single_bytes_does_not_respond(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.commands.doctor._RESPONSE_LIMIT_S", 0.3)
    with dripping_server() as address:
        diagnostics = run_doctor(tmp_path, capsys, "--tracking-uri", address, exit_code=1)
    assert diagnostics["store"] == ("bad", f"{address} does not respond as MLflow (-1)")


def test_doctor_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pipelines.cli import main\n"
        "try:\n    main(['doctor', '--root', sys.argv[1]])\nexcept SystemExit as error:\n    assert not error.code\n"
        f"heavy = set({HEAVY_PACKAGES}) & set(sys.modules)\nsys.exit(', '.join(sorted(heavy)) or 0)"
    )
    fill_slot(tmp_path)
    environment = make_environment(FORECASTER_SERVING_PORT=str(free_port()))
    completed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "ok    slot        small version 3" in completed.stdout
