"""The command `forecaster tune`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.sources import DataSource, read_spec
from tests.pipelines.tuning.test_search import SPEC, copy_migrated_root

pytestmark = pytest.mark.integration


def run_command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main([str(argument) for argument in arguments])
    assert isinstance(raised.value.code, int | None)
    return raised.value.code or 0


def test_tune_prints_the_best_spec_and_the_next_command(
    six_meters: DataSource, migrated_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.system.processes import write_config

    root, out = copy_migrated_root(migrated_root, tmp_path / "root"), tmp_path / "best.yaml"
    config = write_config(tmp_path / "small.yaml", SPEC)
    arguments = ("tune", six_meters.source, "--config", config, "--trials", 2, "--out", out, "--root", root.path)
    assert run_command(*arguments, "--horizon", 3, "--zone", "Europe/Berlin", "--test-windows", 2, "--season", 6) == 0
    lines = capsys.readouterr().out.splitlines()
    best = read_spec(out)
    assert (best.horizon, best.training.valid_windows, best.season) == (3, 5, 6)
    assert lines[0].split()[:4] == ["trial", "rollout", "epochs", "seconds"]
    assert {lines[1].split()[0], lines[2].split()[0]} == {"1", "2"}
    assert float(lines[1].split()[1]) <= float(lines[2].split()[1])
    assert re.search(
        r", seasonal naive [\d.]+, the last value [\d.]+, the pretrained network [\d.]+ on the same", lines[3]
    )
    assert lines[4].startswith("season  6 steps ")
    command = (
        f"forecaster train {six_meters.source} --config {out} --test-windows 2 --zone Europe/Berlin --root {root.path}"
    )
    assert lines[-1] == f"next    {command}"
    assert run_command(*lines[-1].split()[2:]) == 0, "the printed command runs"


def test_the_validation_windows_of_a_search_can_be_set(
    six_meters: DataSource, migrated_root: Path, tmp_path: Path
) -> None:
    from tests.system.processes import write_config

    root, out = copy_migrated_root(migrated_root, tmp_path / "root"), tmp_path / "best.yaml"
    config = write_config(tmp_path / "small.yaml", SPEC)
    arguments = ("tune", six_meters.source, "--config", config, "--trials", 1, "--out", out, "--root", root.path)
    assert run_command(*arguments, "--valid-windows", 3) == 0
    training = read_spec(out).training
    assert (training.valid_windows, training.valid_stride) == (3, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--config FILE or --horizon STEPS"),
        (["--horizon", "0"], "--horizon of at least 1"),
        (["--horizon", "4", "--trials", "0"], "--trials"),
        (["--horizon", "4", "--trials", "many"], "--trials"),
        (["--horizon", "4", "--timeout=-1"], "--timeout"),
        (["--horizon", "4", "--valid-windows", "0"], "--valid-windows"),
        (["--horizon", "4", "--valid-windows=-1"], "training.valid_windows"),
        (["--horizon", "4", "--season", "0"], "--season of at least 1"),
        (["--horizon", "4", "--out", "nowhere/best.yaml"], "--out"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_invalid_arguments_exit_with_2(
    options: list[str],
    message: str,
    six_meters: DataSource,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command("tune", six_meters.source, *options) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_tune_names_the_extra_to_install(
    six_meters: DataSource, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("pipelines.tuning.study", "pipelines.tuning.search"):
        monkeypatch.delitem(sys.modules, name)
    assert run_command("tune", six_meters.source, "--horizon", "4") == 1
    assert "pip install 'recurrent-forecaster[tune]'" in capsys.readouterr().err
