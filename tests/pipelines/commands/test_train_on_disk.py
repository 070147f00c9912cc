"""`train --on-disk`: the same bundle, and refusals of sources that need the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from forecaster.bundle import artifact
from forecaster.errors import InputError, MissingColumn
from pipelines.cli import main
from pipelines.commands import train as commands
from pipelines.sources import DataSource
from pipelines.sources.on_disk import read_panel_on_disk
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.pipelines.tuning.test_parallel import read_trials
from tests.pipelines.tuning.test_search import copy_migrated_root
from tests.system.processes import write_config


def test_the_bundle_is_that_of_a_training_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "can_record", lambda _: False)
    (tmp_path / "data").mkdir()
    frame = make_noise_frame(series=6)
    for number, ids in enumerate(
        [[f"meter_{index}" for index in range(3, 6)], [f"meter_{index}" for index in range(3)]]
    ):
        frame[frame["unique_id"].isin(ids)].to_parquet(tmp_path / "data" / f"{number}.parquet")
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(make_small_spec().model_dump(mode="json")))
    models = []
    for name, options in {"disk": ["--on-disk"], "memory": []}.items():
        root = tmp_path / name
        arguments = ["--config", str(tmp_path / "small.yaml"), "--root", str(root), "--accelerator", "cpu", *options]
        with pytest.raises(SystemExit) as exit_status:
            main(["train", str(tmp_path / "data"), *arguments])
        assert exit_status.value.code == 0
        [bundle] = (root / "bundles").iterdir()
        models.append(artifact.load_bundle(bundle))
        left = sorted(path.name for path in root.iterdir())
        assert left == ["bundles", "checkpoints"]
    assert "challenger" in capsys.readouterr().out
    on_disk, in_memory = models
    weights = in_memory.network.state_dict()
    assert all((value == weights[name]).all() for name, value in on_disk.network.state_dict().items())
    assert on_disk.facts == in_memory.facts


def run_command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_status:
        main([str(argument) for argument in arguments])
    assert isinstance(exit_status.value.code, int)
    return exit_status.value.code


def write_data(folder: Path, *, steps: int) -> Path:
    frame = make_noise_frame(series=6)
    folder.mkdir()
    frame[frame.groupby("unique_id").cumcount() < steps].to_parquet(folder / "meters.parquet")
    write_config(folder.parent / "small.yaml", make_small_spec(valid_windows=2))
    return folder


@pytest.mark.integration
def test_a_retraining_on_disk_is_that_in_memory(
    tmp_path: Path, migrated_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first model, and then a challenger against it; one retraining in memory repeats the one on disk."""
    data = [write_data(tmp_path / "first", steps=52), write_data(tmp_path / "later", steps=60)]
    roots = [copy_migrated_root(migrated_root, tmp_path / name).path for name in ("disk", "memory")]
    results = []
    for root, options in zip(roots, (["--on-disk"], []), strict=True):
        arguments = ["--config", tmp_path / "small.yaml", "--root", root, "--accelerator", "cpu"]
        codes = [run_command("retrain", folder, *arguments, *options) for folder in data]
        printed = capsys.readouterr().out
        models = [artifact.load_bundle(bundle) for bundle in sorted((root / "bundles").iterdir())]
        weights = sorted(repr([value.tolist() for value in model.network.state_dict().values()]) for model in models)
        results.append((codes, [line for line in printed.splitlines() if line.startswith(("key", "  "))], weights))
    assert results[0] == results[1]
    assert len(results[0][2]) == 2
    assert run_command("retrain", data[1], *arguments[:2], "--root", roots[0], "--accelerator", "cpu") in (0, 3)
    assert "done before" in capsys.readouterr().out


@pytest.mark.integration
def test_a_search_on_disk_is_that_in_memory(tmp_path: Path, migrated_root: Path) -> None:
    data, results = write_data(tmp_path / "data", steps=60), []
    for name, options in (("disk", ["--on-disk"]), ("memory", [])):
        root, out = copy_migrated_root(migrated_root, tmp_path / name), tmp_path / f"{name}.yaml"
        arguments = ["--config", tmp_path / "small.yaml", "--trials", 2, "--out", out, "--root", root.path]
        assert run_command("tune", data, *arguments, "--accelerator", "cpu", *options) == 0
        results.append((read_trials(root), [line for line in out.read_text().splitlines() if line[:1] != "#"]))
    assert results[0] == results[1]
    assert run_command("tune", data, *arguments, "--on-disk", "--on", "ray") == 2


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"cutoff": "2026-01-02"}, "--cutoff"),
        ({"drop_partial": True}, "--drop-partial"),
        ({"is_query": True}, "a query"),
        ({"source": "s3://bucket/data.parquet"}, "a URL"),
        ({"covariates": ("holiday",)}, "the covariates holiday"),
    ],
)
def test_what_needs_a_panel_in_memory_is_refused(changes: dict[str, object], found: str, tmp_path: Path) -> None:
    source = DataSource("data.parquet")._replace(**changes)
    with pytest.raises(InputError, match=f"for --on-disk, .* found {found}"):
        read_panel_on_disk(source, folder=tmp_path)


def test_a_missing_column_is_found_before_the_values_are_read(tmp_path: Path) -> None:
    make_noise_frame(series=1).rename(columns={"y": "value"}).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(MissingColumn, match="y not found among: unique_id, ds, value"):
        read_panel_on_disk(DataSource(str(tmp_path / "data.parquet")), folder=tmp_path / "root")
    assert not (tmp_path / "root").exists()
