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
