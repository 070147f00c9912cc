"""What the doctor finds: a machine that is well, and each thing that may be wrong with it."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from forecaster.bundle import artifact
from pipelines.cli import main
from tests.factories import make_forecaster, make_spec
from tests.system.processes import CHECKOUT, environment, free_port

HEAVY = ("torch", "mlflow", "pytorch_lightning", "sqlalchemy", "bentoml")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORECASTER_SERVING_PORT", str(free_port()))
    for name in ("FORECASTER_SERVING_SLOT", "FORECASTER_SERVING_LEDGER", "MLFLOW_TRACKING_URI", "FORECASTER_ROOT"):
        monkeypatch.delenv(name, raising=False)


def examined(
    root: Path, capsys: pytest.CaptureFixture[str], *options: str, ends: int = 0
) -> dict[str, tuple[str, str]]:
    """Word and what is told, by the name of the finding."""
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--json", "--root", str(root), *options])
    found = json.loads(capsys.readouterr().out)
    assert (left.value.code or 0) == ends, found
    return {one["name"]: (one["word"], one["told"]) for one in found}


def serve(root: Path) -> Path:
    """A slot as a follower leaves it; answers the folder of the bundle."""
    made = root / "slot" / "releases" / "made" / "bundle"
    digest = artifact.save(make_forecaster(make_spec()), made, card="")
    (made.parent / "release.json").write_text(json.dumps({"name": "small", "version": "3", "digest": digest}))
    (root / "slot" / "current").symlink_to("releases/made")
    return made


def test_an_empty_root_is_well_and_stays_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(tmp_path / "root", capsys)
    assert {"python", "packages", "kernel", "processors", "root", "store", "slot", "ledger", "port"} == set(found)
    assert not {name for name, (word, _) in found.items() if word == "bad"}
    assert not (tmp_path / "root").exists()


def test_a_root_in_use_is_told(migrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(migrated / "mlflow.db", tmp_path)
    serve(tmp_path)
    found = examined(tmp_path, capsys, "--deep")
    assert "0 models" in found["store"][1]
    assert found["slot"][1].startswith("small version 3 (")
    assert found["model"][0] == found["torch"][0] == "ok"
    (tmp_path / "slot" / "pinned.json").write_text("{}")
    assert "rolled back here" in examined(tmp_path, capsys)["slot"][1]


def test_a_damaged_slot_and_stores_that_are_none_end_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = serve(tmp_path)
    (bundle / "weights.safetensors").write_bytes(b"spoilt")
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    (tmp_path / "slot" / "ledger.db").write_bytes(b"no database" * 100)
    found = examined(tmp_path, capsys, ends=1)
    assert {name for name, (word, _) in found.items() if word == "bad"} == {"slot", "store", "ledger"}
    assert "weights.safetensors" in found["slot"][1]


@pytest.mark.parametrize(
    ("asked", "word", "told"),
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
def test_packages_are_held_against_what_is_needed(
    asked: list[str],
    word: str,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _: asked)
    found = examined(tmp_path, capsys, ends=int(word == "bad"))["packages"]
    assert found[0] == word
    assert told in found[1]


def test_a_root_that_cannot_be_written_is_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert examined(tmp_path / "file" / "root", capsys, ends=1)["root"][0] == "bad"


class Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def test_who_sits_on_the_port_is_told_and_a_server_that_is_no_mlflow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("FORECASTER_SERVING_PORT", str(server.server_port))
        found = examined(tmp_path, capsys, "--tracking-uri", address, ends=1)
        server.shutdown()
    assert found["port"] == ("bad", f"{address} belongs to another program (404); serve with --port")
    assert found["store"] == ("bad", f"{address} does not answer as MLflow (404)")


def test_no_secret_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    planted = "postgresql+psycopg://me:s3cret@127.0.0.1:1/db"
    monkeypatch.setenv("FORECASTER_SERVING_LEDGER", planted)
    monkeypatch.setenv("FORECASTER_SQL_URL", planted)
    assert "s3cret" not in str(examined(tmp_path, capsys, "--tracking-uri", planted))


def test_it_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pipelines.cli import main\n"
        "try:\n    main(['doctor', '--root', sys.argv[1]])\nexcept SystemExit as left:\n    assert not left.code\n"
        f"found = set({HEAVY}) & set(sys.modules)\nsys.exit(', '.join(sorted(found)) or 0)"
    )
    serve(tmp_path)
    told = environment(FORECASTER_SERVING_PORT=str(free_port()))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=told,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ok    slot        small version 3" in done.stdout
