"""A tracked pretraining: options, an interruption, the run and the bundle."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from forecaster.bundle import artifact
from forecaster.errors import InputError
from forecaster.progress import Progress
from forecaster.registry.registry import create_client
from forecaster.storage.failpoints import ENABLED_VARIABLE, POINTS_VARIABLE, FailPointError
from forecaster.training.pretraining import run as pretraining
from forecaster.training.pretraining.module import PretrainingOptions
from pipelines.cli import app
from pipelines.settings import Root
from pipelines.training.pretrain import parse_options, pretrain
from tests.case_selection import fail_points_of
from tests.system.processes import run_forecaster

pytestmark = pytest.mark.integration
TINY = parse_options(steps=6, epoch_steps=2, segments=64, origins=2, layers=1, hidden=8)


@pytest.fixture(autouse=True)
def _few_range_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "_RANGE_SERIES", 200)


class InterruptingProgress(Progress):
    """Interrupts the work after a number of steps, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step, self.details = step, list[str]()

    def update(self, completed: int, detail: str = "") -> None:
        self.details.append(detail)
        if completed == self.step:
            raise KeyboardInterrupt


class PhaseRecorder(Progress):
    """Records the names of the phases."""

    def __init__(self) -> None:
        self.phases = list[str]()

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Progress]:
        self.phases.append(name)
        yield self


def test_an_interrupted_pretraining_is_one_run_and_continues(fresh_root: Root, tmp_path: Path) -> None:
    progress = InterruptingProgress(step=5)
    with pytest.raises(KeyboardInterrupt) as caught:
        pretrain(TINY, fresh_root, out=tmp_path / "new", accelerator="cpu", progress=progress)
    [note] = caught.value.__notes__
    assert "finished steps are kept in" in note
    assert re.fullmatch(r"loss [\d.]+, [\d.]+ steps/s", progress.details[-2])
    [folder] = [path for path in fresh_root.checkpoints.iterdir() if path.is_dir()]
    run_id = (folder / "run_id").read_text()
    client = create_client(fresh_root.store_uri)
    assert client.get_run(run_id).info.status == "KILLED"

    result = pretrain(TINY, fresh_root, out=tmp_path / "new", accelerator="cpu")
    run = client.get_run(run_id)
    assert result.run_id == run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["pretraining.steps"] == "6"
    assert run.data.tags["bundle_digest"] == result.digest
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [2, 4, 6]
    assert {file.path for file in client.list_artifacts(run_id)} >= {"bundle", "model_card.md"}
    assert not folder.exists()
    assert artifact.load_bundle(result.bundle).facts["steps"] == result.steps == 6

    uninterrupted = pretrain(TINY, fresh_root, out=tmp_path / "other", record=False, accelerator="cpu")
    assert uninterrupted.run_id is None
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("new", "other")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("point", ["export.written", *fail_points_of("pretrain")])
def test_a_pretraining_that_ended_after_its_bundle_was_written_is_completed(
    point: str, fresh_root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new"
    monkeypatch.setenv(ENABLED_VARIABLE, "1")
    monkeypatch.setenv(POINTS_VARIABLE, f"{point}=raise")
    with pytest.raises(FailPointError, match=point):
        pretrain(TINY, fresh_root, out=out, accelerator="cpu")
    monkeypatch.delenv(POINTS_VARIABLE)
    digest = artifact.compute_bundle_digest(out)
    [folder] = [path for path in fresh_root.checkpoints.iterdir() if path.is_dir()]
    run_id = (folder / "run_id").read_text()

    other = TINY.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match="Expected no folder"):
        pretrain(other, fresh_root, out=out)
    progress = PhaseRecorder()
    result = pretrain(TINY, fresh_root, out=out, accelerator="cpu", progress=progress)
    assert progress.phases == [], "nothing is trained or written again"
    assert (result.digest, result.run_id, result.steps) == (digest, run_id, TINY.steps)
    assert artifact.compute_bundle_digest(out) == digest
    assert not folder.exists()
    run = create_client(fresh_root.store_uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["bundle_digest"] == digest
    assert run.data.metrics["train/cpu_seconds"] == result.cpu_seconds > 0
    assert {file.path for file in create_client(fresh_root.store_uri).list_artifacts(run_id)} >= {
        "bundle",
        "model_card.md",
    }
    with pytest.raises(InputError, match="Expected no folder"):
        pretrain(TINY, fresh_root, out=out)


def test_a_damaged_bundle_of_an_interrupted_pretraining_is_refused(
    fresh_root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENABLED_VARIABLE, "1")
    monkeypatch.setenv(POINTS_VARIABLE, "export.written=raise")
    with pytest.raises(FailPointError):
        pretrain(TINY, fresh_root, out=tmp_path / "new", record=False, accelerator="cpu")
    with (tmp_path / "new" / "weights.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(InputError, match="Expected no folder"):
        pretrain(TINY, fresh_root, out=tmp_path / "new", record=False, accelerator="cpu")


def test_a_kill_after_the_bundle_was_written_is_completed_by_the_same_command(fresh_root: Root, tmp_path: Path) -> None:
    options = ("--steps", 6, "--epoch-steps", 2, "--segments", 64, "--layers", 1, "--hidden", 8)
    command = ("pretrain", "--out", "new", *options, "--accelerator", "cpu", "--root", fresh_root.path)
    variables = {ENABLED_VARIABLE: "1", POINTS_VARIABLE: "export.written=kill"}
    assert run_forecaster(*command, folder=tmp_path, **variables).returncode == -signal.SIGKILL
    digest = artifact.compute_bundle_digest(tmp_path / "new")
    completed = run_forecaster(*command, folder=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert f"digest {digest}" in completed.stdout
    assert not [path for path in fresh_root.checkpoints.iterdir() if path.is_dir()]


def test_a_folder_is_not_overwritten(fresh_root: Root, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected no folder"):
        pretrain(TINY, fresh_root, out=tmp_path)
    assert not fresh_root.checkpoints.exists()


@pytest.mark.parametrize("fields", [{"steps": 0}, {"hidden": 0}, {"learning_rate": -1.0}])
def test_options_out_of_range_are_refused(fields: dict[str, float]) -> None:
    [name] = fields
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}"):
        parse_options(**fields)


def test_the_command_of_the_card_gives_the_options_of_the_bundle(
    fresh_root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = pretrain(TINY, fresh_root, out=tmp_path / "new", record=False, accelerator="cpu")
    card = (result.bundle / "card.md").read_text()
    [command] = re.findall(r"(?m)^forecaster (pretrain .*)$", card)
    received: list[PretrainingOptions] = []

    def record_options(options: PretrainingOptions, *_: object, **__: object) -> object:
        received.append(options)
        return result

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.training.pretrain.pretrain", record_options)
    app(shlex.split(command), result_action="return_value")
    assert received == [TINY]
    assert json.dumps(TINY.model_dump(mode="json"), indent=1) in card
    assert "`components`" in card
    assert re.search(r"(?m)^\| 12 \| [\d.]+ % \| \d+ to \d+ \| 3 \| - \|$", card)
