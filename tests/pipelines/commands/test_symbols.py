"""The commands with a model of symbols: train, forecast, backtest, register and promote it; others refuse it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from forecaster.errors import BadSpec, ForecasterError, LevelOutOfRange
from forecaster.registry.registry import CHAMPION, Registry
from pipelines.cli import app
from pipelines.settings import Root
from tests.pipelines.conftest import copy_root

pytestmark = pytest.mark.integration

CYCLE = ["start", "NA", "404", "404", "stop"]  # text that other columns read as a missing value or as a number
SPEC = {
    "name": "machine",
    "context": 10,
    "horizon": 5,
    "min_history": 1,
    "scaling": "none",
    "head": {"kind": "symbols"},
    "network": {"hidden": 12},
    "training": {"steps": 80, "epoch_steps": 40, "batch": 32, "learning_rate": 0.03, "valid_windows": 1},
}


def run(*arguments: str | Path) -> None:
    app([str(argument) for argument in arguments], exit_on_error=False, result_action="return_value")


@pytest.fixture(scope="module")
def folder(migrated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log, a specification, and the root of a training with them."""
    folder = tmp_path_factory.mktemp("symbols")
    copy_root(Root(migrated_root), folder / "root")
    ds = pd.date_range("2026-03-02", periods=61, freq="min")
    parts = [
        pd.DataFrame({"unique_id": f"m{number}", "ds": ds, "y": [CYCLE[(step + number) % 5] for step in range(61)]})
        for number in range(2)
    ]
    log = pd.concat(parts, ignore_index=True)
    log.loc[3, "y"] = None
    log.to_csv(folder / "log.csv", index=False)
    (folder / "machine.yaml").write_text(yaml.safe_dump(SPEC))
    run("train", folder / "log.csv", "--config", folder / "machine.yaml", "--root", folder / "root")
    return folder


@pytest.fixture
def bundle(folder: Path) -> Path:
    [bundle] = (folder / "root" / "bundles").iterdir()
    return bundle


def test_a_forecast_continues_the_log_with_symbols(folder: Path, bundle: Path, tmp_path: Path) -> None:
    run("forecast", bundle, folder / "log.csv", "--horizon", "5", "--out", tmp_path / "forecast.csv")
    forecast = pd.read_csv(tmp_path / "forecast.csv", dtype=str, keep_default_na=False)
    assert list(forecast.columns) == ["unique_id", "ds", "symbol"]
    assert forecast["symbol"].tolist() == [CYCLE[(61 + step + number) % 5] for number in range(2) for step in range(5)]


def test_a_backtest_scores_symbols(
    folder: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scores = tmp_path / "windows.csv", tmp_path / "scores.csv"
    run("backtest", bundle, folder / "log.csv", "--windows", "2", "--out", out, "--scores", scores)
    printed = capsys.readouterr().out
    assert all(heading in printed for heading in ("accuracy", "cross-entropy", "perplexity", "markov"))
    rows, table = pd.read_csv(out, keep_default_na=False), pd.read_csv(scores)
    by_name = table.set_index(["forecaster", "metric"])["value"]
    assert by_name["machine", "rollout_accuracy"] == pytest.approx((rows["y"] == rows["machine"]).mean())
    assert by_name["machine", "perplexity"] < by_name["markov", "perplexity"]
    for option, value in (("--rival", bundle), ("--levels", "0.5"), ("--plot", tmp_path / "x.png")):
        with pytest.raises(BadSpec, match="Expected one model of symbols"):
            run("backtest", bundle, folder / "log.csv", option, value)


def test_a_model_of_symbols_is_registered_and_promoted_by_its_perplexity(folder: Path, bundle: Path) -> None:
    root = folder / "root"
    run("register", bundle, "--root", root)
    run("promote", "machine", "--root", root)
    assert Registry(Root(root).store_uri).resolve("machine", CHAMPION).number == "1"
    with pytest.raises(BadSpec, match="Expected a model of numbers for monitoring"):
        run("monitor", "machine", "--root", root)


def test_commands_for_numbers_refuse_a_model_of_symbols(folder: Path, bundle: Path) -> None:
    log, config = folder / "log.csv", folder / "machine.yaml"
    refused: dict[tuple[str | Path, ...], tuple[type[ForecasterError], str]] = {
        ("inspect", bundle, log): (BadSpec, "for an explanation"),
        ("tune", log, "--config", config): (BadSpec, "for a search"),
        ("retrain", log, "--config", config, "--root", folder / "root"): (BadSpec, "for a retraining"),
        ("forecast", bundle, log, "--levels", "0.5"): (LevelOutOfRange, "have no intervals"),
        ("train", log, "--config", config, "--drop-partial"): (BadSpec, "found symbols"),
        ("train", log, "--config", config, "--members", "2"): (BadSpec, "symbols have no median"),
    }
    for arguments, (error, message) in refused.items():
        with pytest.raises(error, match=message):
            run(*arguments)
