"""A blend through its life: trained, recorded, told, asked; and no test window has a part in it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.errors import MissingPackage
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import CHALLENGER, connect
from forecaster.statistical.blend import NETWORK
from pipelines.cli import main
from pipelines.commands.options import spec_of
from pipelines.retraining.retrain import retrain
from pipelines.settings import Root
from pipelines.sources import Data, read
from pipelines.training.train import Trained, train
from tests.pipelines.conftest import small

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's
pytest.importorskip("statsforecast")

THETA = "dynamic_optimized_theta"
SPEC = small(valid_windows=2, refit=True).model_copy(update={"blend": (THETA,)})
HORIZON = SPEC.horizon


def trended(folder: Path, *, last: float = 0.0, series: int = 8, steps: int = 60) -> Data:
    """Rising series, which Theta follows and a network that was hardly trained does not; `last` is added to the last horizon."""
    draw, late = np.random.default_rng(0), np.arange(steps) >= steps - HORIZON
    frames = [
        pd.DataFrame(
            {
                "unique_id": f"s{number}",
                "ds": pd.date_range("2026-01-01", periods=steps, freq="h"),
                "y": 10 + 0.5 * np.arange(steps) + draw.normal(size=steps) + last * late,
            }
        )
        for number in range(series)
    ]
    path = folder / f"trended_{last:g}.csv"
    pd.concat(frames).to_csv(path, index=False)
    return Data(str(path))


def command(*arguments: str) -> object:
    """Runs the command line; its exit code."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


@pytest.fixture
def trained(fresh: Root, tmp_path: Path) -> Trained:
    return train(trended(tmp_path), SPEC, fresh, test_windows=1)


def test_a_blend_is_told_by_bundle_card_manifest_and_run(fresh: Root, trained: Trained) -> None:
    weights = trained.forecaster.blend
    assert weights[THETA] > 0.5
    assert weights[NETWORK] == pytest.approx(1 - weights[THETA])
    assert artifact.load(trained.bundle).blend == weights
    told = f"{100 * weights[NETWORK]:g} % network, {100 * weights[THETA]:g} % {THETA}"
    assert f"Blend: {told}." in (trained.bundle / "card.md").read_text()
    facts = artifact.read_manifest(trained.bundle).facts
    assert facts["blend"]["weights"] == weights
    assert facts["blend"]["chosen"] == "optimal"
    run = connect(fresh.store).get_run(trained.run_id)
    assert run.data.tags["blend"] == told
    assert run.data.params["blend"]
    for name in ("mase", "rmsse", "smape"):
        assert run.data.metrics[f"bt/{name}"] == pytest.approx(trained.scores[CHALLENGER][name], rel=1e-12)
        assert run.data.metrics[f"bt_pure/{name}"] == trained.scores[NETWORK][name]
    assert run.data.metrics["bt/mase"] < run.data.metrics["bt_pure/mase"]


def test_what_the_backtest_scored_is_what_the_predictor_says(trained: Trained, tmp_path: Path) -> None:
    assert trained.result is not None
    predictor = Predictor(artifact.load(trained.bundle))
    known = [one.until(len(one) - HORIZON) for one in read(trended(tmp_path)).series]
    for row, outcome in enumerate(predictor.forecast_each(known, HORIZON, levels=[0.1, 0.9])):
        np.testing.assert_allclose(outcome.mean, trained.result.forecasts[CHALLENGER][row, 0], rtol=1e-4)  # type: ignore[union-attr]
    pure = trained.result.forecasts[NETWORK]
    assert not np.allclose(pure, trained.result.forecasts[CHALLENGER])


def test_no_test_window_has_a_part_in_the_weights(fresh: Root, trained: Trained, tmp_path: Path) -> None:
    other = train(trended(tmp_path, last=1000.0), SPEC, fresh, test_windows=1)
    assert other.scores != trained.scores
    assert other.forecaster.blend == trained.forecaster.blend
    assert other.forecaster.facts["blend"] == trained.forecaster.facts["blend"]
    for name in ("blend.json", "conformal.json", "weights.safetensors", "golden.json"):
        assert (other.bundle / name).read_bytes() == (trained.bundle / name).read_bytes()


def test_a_blend_is_retrained_beside_a_champion_that_is_one(fresh: Root, tmp_path: Path) -> None:
    data = trended(tmp_path)
    first = retrain(data, SPEC, fresh)
    assert first.verdict.promote, first.verdict
    again = retrain(data, SPEC, fresh)
    assert not again.verdict.promote, "it is no better than itself"
    assert set(again.trained.scores) == {CHALLENGER, NETWORK, "champion", "seasonal_naive"}


def test_without_a_blend_nothing_speaks_of_one(fresh: Root, tmp_path: Path) -> None:
    plain = train(trended(tmp_path), small(), fresh)
    assert plain.forecaster.blend == {}
    assert set(plain.scores) == {CHALLENGER, "seasonal_naive"}
    assert "blend" not in plain.forecaster.facts
    assert "Blend" not in (plain.bundle / "card.md").read_text()
    run = connect(fresh.store).get_run(plain.run_id)
    assert not [name for name in run.data.metrics if "pure" in name]
    assert "blend" not in run.data.tags


def test_without_its_package_a_blend_is_refused_before_there_is_a_run(
    fresh: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "statsforecast", None)
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)
    with pytest.raises(MissingPackage, match="statsforecast"):
        train(trended(tmp_path), SPEC, fresh)
    assert not fresh.bundles.exists()
    assert not connect(fresh.store).search_experiments(filter_string="name = 'small'")


def test_the_command_line_asks_for_a_blend_and_says_that_it_is_one(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = trended(tmp_path)
    config = tmp_path / "small.yaml"
    config.write_text(small().model_dump_json())
    arguments = {"horizon": None, "seed": None}
    assert spec_of(config, data, blend=(THETA,), **arguments).blend == (THETA,)  # type: ignore[arg-type]
    config.write_text(SPEC.model_dump_json())
    assert spec_of(config, data, **arguments).blend == (THETA,)  # type: ignore[arg-type]
    assert command("train", data.source, "--blend", "prophet", "--root", str(tmp_path / "none")) == 2
    for name in ("forecast", "backtest"):
        capsys.readouterr()
        assert command(name, str(trained.bundle), data.source) == 0
        assert f"small is a blend: {100 * trained.forecaster.blend[NETWORK]:g} % network" in capsys.readouterr().err
    assert command("verify", str(trained.bundle)) == 0
    assert "; a blend: " in capsys.readouterr().out
