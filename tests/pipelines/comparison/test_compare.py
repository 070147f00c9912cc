"""Runs side by side: found, held against each other on the same windows, refused where their data differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import InputError
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.significance import paired
from forecaster.registry.registry import CHALLENGER, Registry
from pipelines.comparison.compare import compared
from pipelines.promotion.promote import register
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.tracking.backtests import Kept
from pipelines.tracking.reader import Recorded, recorded
from pipelines.training.train import Trained, train
from tests.pipelines.commands.test_channels import run
from tests.pipelines.conftest import BAD, noise, small

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's


@dataclass(frozen=True)
class World:
    """A root with two runs on the same data and one on fewer of them."""

    root: Root
    good: Trained
    bad: Trained
    other: Trained


@pytest.fixture(scope="module")
def world(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("compare")
    noise().to_csv(folder / "meters.csv", index=False)
    noise().groupby("unique_id").head(56).to_csv(folder / "shorter.csv", index=False)
    root = Root(folder / "root")
    root.path.mkdir()
    (root.path / "mlflow.db").write_bytes((migrated / "mlflow.db").read_bytes())
    data, shorter = Data(str(folder / "meters.csv")), Data(str(folder / "shorter.csv"))
    good = train(data, small(valid_windows=1, refit=True), root, test_windows=2)
    bad = train(data, small(learning_rate=BAD, seed=1, valid_windows=0), root, test_windows=2)
    return World(root, good, bad, train(shorter, small(), root, test_windows=2))


def test_the_test_is_that_of_the_raw_errors(world: World) -> None:
    runs = [recorded(one.run_id, world.root) for one in (world.good, world.bad)]
    found = compared(runs)
    assert world.good.result is not None
    assert world.bad.result is not None
    errors = [
        np.abs(one.result.actual - one.result.forecasts[CHALLENGER]).mean(axis=(1, 2)) / one.result.scale
        for one in (world.good, world.bad)
        if one.result is not None
    ]
    [(label, test)] = found.against.items()
    expected = paired(errors[1] - errors[0])
    assert label == f"small {world.bad.run_id[:6]}"
    assert test.p == pytest.approx(expected.p, rel=1e-9)
    assert test.difference == pytest.approx(expected.difference)
    assert test.difference > 0, "the second has larger errors"
    assert found.shared is not None
    assert found.shared.scores(found.labels[1])["mase"] == pytest.approx(world.bad.scores[CHALLENGER]["mase"])
    assert found.shared.stride == 4
    assert found.told == []


def test_the_best_is_marked_and_only_fields_that_differ_are_told(world: World) -> None:
    found = compared([recorded(one.run_id, world.root) for one in (world.good, world.bad)])
    rows = {row.metric: row for row in found.rows}
    assert found.rows[0].metric == "bt/mase"
    assert rows["bt/mase"].best == (0,)
    assert rows["bt/skill_vs_snaive"].best == (0,), "more is better"
    assert rows["bt/mase"].differences[1] == pytest.approx(
        world.bad.scores[CHALLENGER]["mase"] - world.good.scores[CHALLENGER]["mase"]
    )
    assert rows["bt/crps"].values[1] is None, "the second was not calibrated"
    assert rows["bt/crps"].best == ()
    assert {one.field for one in found.specs} == {
        "training.learning_rate",
        "training.seed",
        "training.refit",
        "training.valid_windows",
    }


def test_runs_on_different_data_are_refused_unless_that_is_allowed(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", world.good.run_id, world.other.run_id, "--root", world.root.path]
    assert run(*command) == 2
    said = capsys.readouterr().err
    assert "have the digests" in said
    assert "the cutoffs of" in said
    assert "--different-data" in said
    assert run(*command, "--different-data", "--json", tmp_path / "told.json") == 0
    captured = capsys.readouterr()
    assert "the cutoffs of" in captured.err
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["windows"] == 20, "the one cutoff that both have"
    assert told["told"]


def test_a_page_holds_all_it_shows_and_json_says_the_same(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--html", tmp_path / "page.html", "--json", tmp_path / "told.json", "--plot", tmp_path / "drawn"]
    command = ["compare", world.good.run_id[:12], world.bad.run_id[:12], "--root", world.root.path, *files]
    assert run(*command, "--series", "meter_3") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "paired t over 20 series" in said.out
    assert "training.learning_rate" in said.out
    page, told = (tmp_path / "page.html").read_text(), json.loads((tmp_path / "told.json").read_text())
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in page
    assert told["metrics"][0]["metric"] == "bt/mase"
    assert told["metrics"][0]["best"] == [f"small {world.good.run_id[:6]}"]
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"forecasts.png", "error_by_horizon.png"}
    assert run(*command, "--series", "nobody") == 2
    assert "meter_0" in capsys.readouterr().err


def test_models_are_named_by_alias_and_by_version(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    first = register(world.good.bundle, world.root)
    second = register(world.bad.bundle, world.root)
    Registry(world.root.store).set_alias(second, CHALLENGER)
    where = ["--root", world.root.path]
    assert run("compare", f"small@{first.number}", "small@challenger", *where) == 0
    assert "small@1" in capsys.readouterr().out
    for unknown in ("small@nobody", "nobody", "f" * 32, "0" * 7):
        assert run("compare", "small@1", unknown, *where) == 2
        assert "run's id" in capsys.readouterr().err
    assert run("compare", "small@1", *where) == 2


def test_a_beginning_that_two_runs_share_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [world.good.run_id, world.bad.run_id]
    monkeypatch.setattr("pipelines.tracking.reader._beginning", lambda client, told: both)
    with pytest.raises(InputError, match=r"'abcd' begins 2 of them: .* Give more of it"):
        recorded("abcd", world.root)


def made(label: str, frame: pd.DataFrame, **params: str) -> Recorded:
    kept = Kept(CHALLENGER, frame, pd.DataFrame({"unique_id": [], "ds": [], "y": []}))
    return Recorded(label, label, label, {"horizon": "2", **params}, {"bt/mase": 1.0}, {}, "training", kept)


def frame_of(truth: np.ndarray, said: np.ndarray) -> pd.DataFrame:
    """Series of windows that overlap by a step: `truth` and `said` are by series, window and step."""
    series, windows, horizon = truth.shape
    rows = [
        (f"s{s}", w, w + 1 + h, h + 1, truth[s, w, h], said[s, w, h], 2.0, 4.0)
        for s in range(series)
        for w in range(windows)
        for h in range(horizon)
    ]
    return pd.DataFrame(rows, columns=["unique_id", "cutoff", "ds", "step", "y", CHALLENGER, "scale", "square_scale"])


def test_rows_in_any_order_become_the_cubes_they_were_of() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(3, 4, 2))
    one, two = truth + 1.0, truth + draw.normal(size=truth.shape)
    frames = [frame_of(truth, said).sample(frac=1.0, random_state=1) for said in (one, two)]
    found = compared([made("one", frames[0]), made("two", frames[1])])
    assert isinstance(found.shared, Backtest)
    order = [int(name[1:]) for name in found.ids]
    np.testing.assert_array_equal(found.shared.actual, truth[order])
    np.testing.assert_array_equal(found.shared.forecasts["two"], two[order])
    assert found.shared.stride == 1, "cutoffs a step apart"
    assert found.shared.scores("one")["mase"] == pytest.approx(0.5)


def test_another_truth_is_noticed_and_not_tested_on() -> None:
    truth = np.arange(12.0).reshape(3, 2, 2)
    moved = truth.copy()
    moved[1, 0, 1] += 1e-6
    runs = [made("one", frame_of(truth, truth)), made("two", frame_of(moved, truth + 1))]
    with pytest.raises(InputError, match="what came is not the same for one and two at 1 of 12 steps"):
        compared(runs)
    found = compared(runs, different_data=True)
    assert found.shared is not None
    assert found.shared.comparable().sum() == 5, "the window with another truth is left out"


def test_equal_labels_are_told_apart() -> None:
    truth = np.zeros((2, 2, 2))
    found = compared([made("one", frame_of(truth, truth + n)) for n in range(3)])
    assert found.labels == ["one", "one (2)", "one (3)"]
    assert list(found.against) == ["one (2)", "one (3)"]


def test_a_run_that_was_never_tested_is_compared_by_what_it_recorded() -> None:
    truth = np.zeros((2, 2, 2))
    whole = made("one", frame_of(truth, truth))
    found = compared([whole, whole._replace(label="two", kept=None)])
    assert found.against == {}
    assert found.rows[0].values == (1.0, 1.0)
    assert "two kept no raw forecasts" in found.told[0]
