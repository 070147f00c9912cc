"""`forecaster tune` as a person meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.sources import Data, read_spec
from tests.pipelines.tuning.test_search import SPEC, new_root


def leave(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int | None)
    return left.value.code or 0


def test_the_command_prints_the_best_and_what_to_run_next(
    meters: Data, migrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.system.processes import write_config

    root, out = new_root(migrated, tmp_path / "root"), tmp_path / "found.yaml"
    config = write_config(tmp_path / "small.yaml", SPEC)
    asked = ("tune", meters.source, "--config", config, "--trials", 2, "--out", out, "--root", root.path)
    assert leave(*asked, "--horizon", 3, "--zone", "Europe/Berlin", "--test-windows", 2) == 0
    said = capsys.readouterr().out
    best = read_spec(out)
    assert (best.horizon, best.training.valid_windows) == (3, 2)
    lines = said.splitlines()
    assert lines[0].split()[:4] == ["trial", "rollout", "epochs", "seconds"]
    assert {lines[1].split()[0], lines[2].split()[0]} == {"1", "2"}
    assert float(lines[1].split()[1]) <= float(lines[2].split()[1])
    assert "seasonal naive" in lines[3]
    told = f"forecaster train {meters.source} --config {out} --test-windows 2 --zone Europe/Berlin --root {root.path}"
    assert lines[-1] == f"next    {told}"
    assert leave(*lines[-1].split()[2:]) == 0, "and it runs"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--config FILE or --horizon STEPS"),
        (["--horizon", "0"], "--horizon of at least 1"),
        (["--horizon", "4", "--trials", "0"], "--trials"),
        (["--horizon", "4", "--trials", "many"], "--trials"),
        (["--horizon", "4", "--timeout=-1"], "--timeout"),
        (["--horizon", "4", "--valid-windows", "0"], "--valid-windows"),
        (["--horizon", "4", "--valid-windows=-1"], "training.valid_windows"),
        (["--horizon", "4", "--out", "nowhere/best.yaml"], "--out"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_arguments_end_with_two(
    options: list[str],
    said: str,
    meters: Data,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert leave("tune", meters.source, *options) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_the_command_says_what_to_install(
    meters: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in ("pipelines.tuning.study", "pipelines.tuning.search"):
        monkeypatch.delitem(sys.modules, name)
    assert leave("tune", meters.source, "--horizon", "4") == 1
    assert "pip install 'forecaster[tune]'" in capsys.readouterr().err
