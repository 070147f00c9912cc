"""The examples for other schedulers: they parse, and call commands that the command line knows."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.scheduling.cron import CronSchedule
from tests.docker.manifests import parse_command
from tests.optional_packages import import_optional
from tests.system.processes import make_environment

pytestmark = pytest.mark.integration

DOCKER = Path(__file__).parents[3] / "docker"
UNITS = sorted((DOCKER / "systemd").glob("forecaster-*"))


def read_unit(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("path", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.stem)
def test_a_systemd_service_calls_a_known_command(path: Path) -> None:
    found = read_unit(path)
    [start] = found["ExecStart"]
    program, *words = shlex.split(start)
    command, arguments = parse_command(words)
    assert (Path(program).name, command) in (("forecaster", "retrain"), ("forecaster", "run"), ("forecaster", "serve"))
    assert arguments["root_options"].root == Path("/var/lib") / found["StateDirectory"][0], (
        "the only place it may write to"
    )
    if command == "retrain":
        assert found["SuccessExitStatus"] == ["3"]
    if command == "serve":
        assert arguments["wait"], "a boot before the first promotion is not an error"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed (no systemd-analyze)")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in UNITS:
        # The program is not where an installation would have it.
        text = path.read_text().replace("/srv/forecaster/.venv/bin/forecaster", sys.executable)
        (tmp_path / path.name).write_text(text.replace("User=forecaster\n", ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "forecaster-" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_the_prefect_deployment_calls_retrain() -> None:
    [deployment] = yaml.safe_load((DOCKER / "prefect/prefect.yaml").read_text())["deployments"]
    assert deployment["entrypoint"] == "pipelines/scheduling/prefect_flow.py:retrain_flow"
    command, arguments = parse_command(["retrain", *deployment["parameters"]["words"]])
    assert (command, arguments["trigger"]) == ("retrain", "prefect")
    [schedule] = deployment["schedules"]
    CronSchedule(schedule["cron"], schedule["timezone"])
    assert deployment["work_pool"]["job_variables"]["env"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


FLOW_PROGRAM = """
import os, sys
from pathlib import Path
import pipelines.scheduling.prefect_flow as ours
from prefect.testing.utilities import prefect_test_harness
from prefect.settings import get_current_settings

assert get_current_settings().server.analytics_enabled is False
script = "import pathlib, sys; print('secret', *sys.argv[1:]); p = pathlib.Path('codes'); \
c = p.read_text().split(); p.write_text(' '.join(c[1:])); sys.exit(int(c[0]))"
ours.CLI_COMMAND = (sys.executable, "-c", script)
ours.run_command.retry_delay_seconds = 0
with prefect_test_harness():
    Path("codes").write_text("1 0 9")
    assert ours.retrain_flow(["data.csv"]) == {"code": 0, "outcome": "done", "said": "*** retrain data.csv"}
    Path("codes").write_text("3")
    assert ours.retrain_flow(["data.csv"])["code"] == 3
    Path("codes").write_text("2 0")
    state = ours.retrain_flow(["data.csv"], return_state=True)
    assert state.is_failed() and Path("codes").read_text() == "0", "not tried again"
    assert ours.retrain_flow(["--tracking-uri=http://u:pw@h"], return_state=True).is_failed()
    assert Path("codes").read_text() == "0"
print("all is well")
"""


def test_the_prefect_flow_retries_and_hides_secrets(tmp_path: Path) -> None:
    import_optional("prefect")
    done = subprocess.run(
        [sys.executable, "-c", FLOW_PROGRAM],
        cwd=tmp_path,
        env=make_environment(
            PREFECT_HOME=str(tmp_path / "prefect"), PGPASSWORD="secret", PREFECT_LOGGING_LEVEL="WARNING"
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "all is well" in done.stdout, done.stdout + done.stderr
