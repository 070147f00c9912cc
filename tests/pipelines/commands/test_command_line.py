"""The command line as a whole: its help, its imports, and the environment of the service."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.errors import RegistryError
from pipelines.cli import app, main
from pipelines.settings import Root, build_serving_environment
from tests.factories import make_fitted_model, make_spec, make_wave

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[3]
COMMANDS = [name for name in app if not name.startswith("-")]
HEAVY_PACKAGES = (
    "torch",
    "mlflow",
    "pandas",
    "numpy",
    "pydantic",
    "pytorch_lightning",
    "matplotlib",
    "bentoml",
    "pyarrow",
    "sqlalchemy",
)


def run_program(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a new Python process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FORECASTER_", "MLFLOW_"))}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**inherited, "PYTHONPATH": str(CHECKOUT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_documented_commands_exist() -> None:
    assert set(COMMANDS) >= {
        *("train", "tune", "backtest", "forecast", "register", "promote", "retrain", "verify", "serve", "demo")
    }


def list_options(name: str, default: object) -> list[str]:
    """The options of a parameter: one, or those of a group of options, which may contain groups."""
    if not is_dataclass(default) or isinstance(default, type):
        return [name]
    return [option for field in fields(default) for option in list_options(field.name, getattr(default, field.name))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_documents_itself_and_its_parameters(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    subcommands = {"data": "check", "key": "new", "schedule": "status"}
    path = [command, subcommands[command]] if command in subcommands else [command]
    with pytest.raises(SystemExit) as raised:
        main([*path, "--help"])
    assert raised.value.code == 0
    help_text = " ".join(capsys.readouterr().out.split())
    app_command = app[command][subcommands[command]] if command in subcommands else app[command]
    function = app_command.default_command
    assert function is not None
    assert (function.__doc__ or "nothing").split(",")[0].split()[0] in help_text
    parameters = inspect.signature(function).parameters.values()
    options = [
        name
        for parameter in parameters
        if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
        for name in list_options(parameter.name, parameter.default)
    ]
    for name in options:
        assert f"--{name.replace('_', '-')}" in help_text


def test_help_imports_nothing_heavy() -> None:
    """Shows the help of every command in one process, so that an import by any of them is detected."""
    program = (
        "import sys\nfrom pipelines.cli import main\n"
        "for command in ['', *sys.argv[1:]]:\n"
        "    try:\n        main([*command.split(), '--help'])\n    except SystemExit as error:\n        assert not error.code\n"
        f"    heavy = set({HEAVY_PACKAGES}) & set(sys.modules)\n"
        "    if heavy:\n        sys.exit(f'{command}: {sorted(heavy)}')\n"
    )
    subcommands = [f"{name} {sub}" for name in COMMANDS for sub in app[name] if not sub.startswith("-")]
    completed = run_program(program, *COMMANDS, *subcommands)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("Usage") == 1 + len(COMMANDS) + len(subcommands)
    assert {"data check", "key new", "schedule status"} <= set(subcommands)


def test_a_backtest_uses_every_origin_of_the_stride(tmp_path: Path) -> None:
    artifact.save_bundle(make_fitted_model(make_spec(reads="history")), tmp_path / "bundle", card="")
    timestamps = pd.date_range("2026-01-01", periods=40, freq="h")
    pd.DataFrame({"unique_id": "a", "ds": timestamps, "y": make_wave(40)}).to_csv(tmp_path / "data.csv", index=False)
    arguments = ["backtest", str(tmp_path / "bundle"), str(tmp_path / "data.csv"), "--windows", "7", "--stride", "2"]
    with pytest.raises(SystemExit) as raised:
        main([*arguments, "--out", str(tmp_path / "out.csv")])
    assert not raised.value.code
    frame = pd.read_csv(tmp_path / "out.csv", parse_dates=["cutoff", "ds"])
    assert list(frame.columns) == [
        "unique_id",
        "cutoff",
        "ds",
        "step",
        "y",
        "small",
        "seasonal_naive",
        "last_value",
        "zero_shot",
    ]
    assert frame["cutoff"].unique().tolist() == timestamps[22:35:2].tolist()
    assert (frame["ds"] - frame["cutoff"] == frame["step"] * pd.Timedelta("1h")).all()
    assert np.isfinite(frame["small"]).all()


def test_serving_starts_without_training_packages(tmp_path: Path) -> None:
    """The image of the service has no Lightning, no matplotlib, and only a part of MLflow."""
    program = (
        "import os, sys\n"
        "def execve(path, arguments, environment):\n"
        "    print(arguments[1:], environment['FORECASTER_SERVING_MODEL'], environment['FORECASTER_SERVING_REGISTRY'])\n"
        "    heavy = {'torch', 'pytorch_lightning', 'lightning_fabric', 'matplotlib', 'mlflow'} & set(sys.modules)\n"
        "    os._exit(print(heavy, file=sys.stderr) or 9 if heavy else 0)\n"
        "os.execve = execve\n"
        "sys.stdout.reconfigure(line_buffering=True)\n"
        "from pipelines.cli import main\n"
        "main(['serve', 'small', '--wait', '--root', sys.argv[1]])\n"
        "sys.exit('serve returned')"
    )
    completed = run_program(program, str(tmp_path))
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.strip() == f"['-m', 'serving'] small sqlite:///{tmp_path}/mlflow.db"


def test_serve_follows_the_registry_of_its_root(tmp_path: Path) -> None:
    assert build_serving_environment({}, Root(tmp_path), model="small", host="127.0.0.1", port=3001) == {
        "FORECASTER_SERVING_SLOT": str(tmp_path / "slot"),
        "FORECASTER_SERVING_REGISTRY": f"sqlite:///{tmp_path}/mlflow.db",
        "FORECASTER_SERVING_MODEL": "small",
        "FORECASTER_SERVING_HOST": "127.0.0.1",
        "FORECASTER_SERVING_PORT": "3001",
    }


def test_serve_follows_a_tracking_server_if_given(tmp_path: Path) -> None:
    environment = build_serving_environment(
        {}, Root(tmp_path, "http://mlflow:5000"), model="small", host=None, port=None
    )
    assert environment["FORECASTER_SERVING_REGISTRY"] == "http://mlflow:5000"
    assert "FORECASTER_SERVING_PORT" not in environment, "the service has a default"


def test_serve_without_a_model_name_serves_the_slot_only(tmp_path: Path) -> None:
    assert build_serving_environment({}, Root(tmp_path), model=None, host=None, port=None) == {
        "FORECASTER_SERVING_SLOT": str(tmp_path / "slot")
    }


def test_serve_keeps_the_environment_and_options_override_it(tmp_path: Path) -> None:
    environ = {
        "FORECASTER_SERVING_SLOT": "/elsewhere",
        "FORECASTER_SERVING_REGISTRY": "http://other:5000",
        "FORECASTER_SERVING_PORT": "1234",
        "FORECASTER_SERVING_WORKERS": "4",
        "PATH": "/bin",
    }
    environment = build_serving_environment(environ, Root(tmp_path), model="small", host=None, port=4321)
    assert environment == {**environ, "FORECASTER_SERVING_MODEL": "small", "FORECASTER_SERVING_PORT": "4321"}


def test_serve_passes_the_path_of_a_proxy_to_the_service(tmp_path: Path) -> None:
    environment = build_serving_environment(
        {}, Root(tmp_path), model=None, host=None, port=None, root_path="/forecasts"
    )
    assert environment["FORECASTER_SERVING_ROOT_PATH"] == "/forecasts"


def test_a_root_that_does_not_fit_a_database_uri_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="without"):
        _ = Root(tmp_path / "a?b").store_uri
