"""The console script reports faults of an installation in one line."""

from __future__ import annotations

import builtins
import sys
from importlib.metadata import Distribution
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import __main__ as console_script
from pipelines import cli


def test_the_packages_of_this_installation_are_ours() -> None:
    assert console_script.find_foreign_package() is None


def test_a_package_of_the_same_name_elsewhere_on_the_path_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = SimpleNamespace(origin=str(tmp_path / "forecaster/__init__.py"))
    monkeypatch.setattr(console_script, "find_spec", lambda name: found)
    with pytest.raises(SystemExit) as exit_info:
        console_script.main()
    message = capsys.readouterr().err
    assert exit_info.value.code == 1
    assert f"found {tmp_path / 'forecaster'}" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "is_foreign"),
    [("forecaster/__init__.py", True), ("__editable___forecaster_finder.py", False), ("forecaster_x/a.py", False)],
)
def test_a_distribution_that_writes_into_the_package_is_foreign(
    file: str, is_foreign: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other: Any = SimpleNamespace(files=[PurePosixPath(file)])

    def find(name: str) -> Distribution:
        if name != "forecaster":
            raise console_script.PackageNotFoundError(name)
        return other  # type: ignore[no-any-return]

    monkeypatch.setattr(console_script, "distribution", find)
    fault = console_script.find_foreign_package()
    assert (fault is not None) == is_foreign
    assert fault is None or "pip uninstall forecaster" in fault


def test_without_the_extra_cli_the_console_script_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_import = builtins.__import__

    def import_without_cyclopts(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pipelines.cli":
            raise ModuleNotFoundError("No module named 'cyclopts'", name="cyclopts")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_cyclopts)
    with pytest.raises(SystemExit) as exit_info:
        console_script.main()
    message = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert "pip install 'recurrent-forecaster[cli]'" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(("module", "extra"), [("pytorch_lightning.callbacks", "train"), ("optuna", "tune")])
def test_a_command_without_its_packages_names_their_extra(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(cli, "app", run)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train"])
    message = capsys.readouterr().err
    assert exit_info.value.code == 1
    assert f"pip install 'recurrent-forecaster[{extra}]'" in message
    assert message.count("\n") == 1


def test_an_unknown_module_is_a_fault_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'forecaster.nothing'", name="forecaster.nothing")

    monkeypatch.setattr(cli, "app", run)
    with pytest.raises(ModuleNotFoundError):
        cli.main(["train"])


def test_serve_without_bentoml_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from forecaster.errors import MissingPackage
    from pipelines.commands import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"recurrent-forecaster\[serve\]"):
        serve.serve("hospital")


def test_the_version_of_the_command_is_that_of_the_distribution() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert cli.app.version == project["version"]


def test_the_console_script_of_the_distribution_is_this_module() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"forecaster": "pipelines.__main__:main"}
    assert project["name"] == "recurrent-forecaster"
    assert "pipelines.__main__" in sys.modules
