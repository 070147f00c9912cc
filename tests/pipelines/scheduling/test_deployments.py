"""The examples for other schedulers are valid and call existing commands."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli import app
from pipelines.scheduling.cron import CronSchedule
from tests.system.processes import make_environment

pytestmark = pytest.mark.integration

DOCKER = Path(__file__).parents[3] / "docker"
UNITS = sorted((DOCKER / "systemd").glob("forecaster-*"))


def parse_command(tokens: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Parses a command line with the parser of the application; raises if the command or an option does not exist."""
    command, bound_arguments, unused_tokens = app.parse_args(list(tokens), exit_on_error=False, print_error=False)
    assert not unused_tokens
    return command.__name__, dict(bound_arguments.arguments)


def read_unit(path: Path) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            fields.setdefault(name, []).append(value)
    return fields


def test_the_kubernetes_cron_job_calls_retrain() -> None:
    job = yaml.safe_load((DOCKER / "kubernetes/retrain.yaml").read_text())
    assert (job["apiVersion"], job["kind"], job["spec"]["concurrencyPolicy"]) == ("batch/v1", "CronJob", "Forbid")
    CronSchedule(job["spec"]["schedule"], job["spec"]["timeZone"])
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    program, *tokens = container["command"]
    command, arguments = parse_command(tokens)
    assert (program, command, arguments["if_needed"], arguments["trigger"]) == (
        "forecaster",
        "retrain",
        True,
        "kubernetes",
    )
    assert arguments["where"].root == Path(container["volumeMounts"][0]["mountPath"])
    assert "env" not in container, "secrets come only from the Secret"
    assert container["envFrom"] == [{"secretRef": {"name": "forecaster"}}]
    [rule] = job["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("path", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.stem)
def test_a_systemd_service_calls_a_known_command(path: Path) -> None:
    unit = read_unit(path)
    [start] = unit["ExecStart"]
    program, *tokens = shlex.split(start)
    command, arguments = parse_command(tokens)
    assert (Path(program).name, command) in (("forecaster", "retrain"), ("forecaster", "run"))
    assert arguments["where"].root == Path("/var/lib") / unit["StateDirectory"][0], "the only folder it may write to"
    if command == "retrain":
        assert unit["SuccessExitStatus"] == ["3"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed (no systemd-analyze)")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in UNITS:
        # The program of an installation does not exist on the test machine.
        text = path.read_text().replace("/srv/forecaster/.venv/bin/forecaster", sys.executable)
        (tmp_path / path.name).write_text(text.replace("User=forecaster\n", ""))
    process = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    messages = [line for line in process.stderr.splitlines() if "forecaster-" in line]
    assert (process.returncode, messages) == (0, []), process.stderr


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
import pipelines.scheduling.prefect_flow as prefect_flow
from prefect.testing.utilities import prefect_test_harness
from prefect.settings import get_current_settings

assert get_current_settings().server.analytics_enabled is False
script = "import pathlib, sys; print('secret', *sys.argv[1:]); p = pathlib.Path('codes'); \
c = p.read_text().split(); p.write_text(' '.join(c[1:])); sys.exit(int(c[0]))"
prefect_flow.CLI_COMMAND = (sys.executable, "-c", script)
prefect_flow.run_command.retry_delay_seconds = 0
with prefect_test_harness():
    Path("codes").write_text("1 0 9")
    assert prefect_flow.retrain_flow(["data.csv"]) == {"code": 0, "outcome": "done", "said": "*** retrain data.csv"}
    Path("codes").write_text("3")
    assert prefect_flow.retrain_flow(["data.csv"])["code"] == 3
    Path("codes").write_text("2 0")
    state = prefect_flow.retrain_flow(["data.csv"], return_state=True)
    assert state.is_failed() and Path("codes").read_text() == "0", "not retried"
    assert prefect_flow.retrain_flow(["--tracking-uri=http://u:pw@h"], return_state=True).is_failed()
    assert Path("codes").read_text() == "0"
print("flow tests passed")
"""


def test_the_prefect_flow_retries_and_hides_secrets(tmp_path: Path) -> None:
    pytest.importorskip("prefect", reason="Prefect is not installed")
    process = subprocess.run(
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
    assert "flow tests passed" in process.stdout, process.stdout + process.stderr
