"""Training, tracking and use of a blend; test windows do not affect its weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.engines.statistical.blend import NETWORK
from forecaster.errors import MissingPackage
from forecaster.evaluation.baselines import BASELINES
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import CHALLENGER, create_client
from pipelines.cli import main
from pipelines.commands.options import SpecOptions
from pipelines.promotion.policy import Policy
from pipelines.retraining.retrain import RetrainOptions, retrain
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.training.train import TrainingResult, train
from tests.pipelines.conftest import make_small_spec
from tests.system.processes import write_config

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]  # raised by Lightning
pytest.importorskip("statsforecast")

THETA = "dynamic_optimized_theta"
SPEC = make_small_spec(valid_windows=2, refit=True).model_copy(update={"blend": (THETA,)})
HORIZON = SPEC.horizon


def write_rising_series(folder: Path, *, last_offset: float = 0.0, series: int = 8, steps: int = 60) -> DataSource:
    """Writes series with a trend, which Theta follows and a briefly trained network does not.

    `last_offset` is added to the last horizon.
    """
    rng, is_last_horizon = np.random.default_rng(0), np.arange(steps) >= steps - HORIZON
    frames = [
        pd.DataFrame(
            {
                "unique_id": f"s{number}",
                "ds": pd.date_range("2026-01-01", periods=steps, freq="h"),
                "y": 10 + 0.5 * np.arange(steps) + rng.normal(size=steps) + last_offset * is_last_horizon,
            }
        )
        for number in range(series)
    ]
    path = folder / f"trended_{last_offset:g}.csv"
    pd.concat(frames).to_csv(path, index=False)
    return DataSource(str(path))


def run_command(*arguments: str) -> object:
    """Runs the command line; returns its exit code."""
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    return raised.value.code


@pytest.fixture
def trained_blend(fresh_root: Root, tmp_path: Path) -> TrainingResult:
    return train(write_rising_series(tmp_path), SPEC, fresh_root)


def test_bundle_card_manifest_and_run_describe_the_blend(fresh_root: Root, trained_blend: TrainingResult) -> None:
    weights = trained_blend.model.blend_weights
    assert weights[THETA] > 0.5
    assert weights[NETWORK] == pytest.approx(1 - weights[THETA])
    assert artifact.load_bundle(trained_blend.bundle).blend_weights == weights
    description = f"{100 * weights[NETWORK]:g} % network, {100 * weights[THETA]:g} % {THETA}"
    assert f"Blend: {description}." in (trained_blend.bundle / "card.md").read_text()
    facts = artifact.read_manifest(trained_blend.bundle).facts
    assert facts["blend"]["weights"] == weights
    assert facts["blend"]["chosen"] == "optimal"
    assert facts["scaled_range"] == trained_blend.model.facts["scaled_range"]
    assert np.ptp(facts["scaled_range"]) > 0
    run = create_client(fresh_root.store_uri).get_run(trained_blend.run_id)
    assert run.data.tags["blend"] == description
    assert run.data.params["blend"]
    for name in ("mase", "rmsse", "smape"):
        assert run.data.metrics[f"bt/{name}"] == pytest.approx(trained_blend.scores[CHALLENGER][name], rel=1e-12)
        assert run.data.metrics[f"bt_pure/{name}"] == trained_blend.scores[NETWORK][name]
    assert run.data.metrics["bt/mase"] < run.data.metrics["bt_pure/mase"]


def test_the_backtest_scores_the_forecasts_of_the_predictor(trained_blend: TrainingResult, tmp_path: Path) -> None:
    assert trained_blend.backtest is not None
    predictor = Predictor(artifact.load_bundle(trained_blend.bundle))
    panel = read_panel(write_rising_series(tmp_path))
    histories = [series.take_first(len(series) - HORIZON) for series in panel.series]
    for row, outcome in enumerate(predictor.forecast_batch(histories, HORIZON, levels=[0.1, 0.9])):
        np.testing.assert_allclose(outcome.mean, trained_blend.backtest.forecasts[CHALLENGER][row, 0], rtol=1e-4)  # type: ignore[union-attr]
    network_forecasts = trained_blend.backtest.forecasts[NETWORK]
    assert not np.allclose(network_forecasts, trained_blend.backtest.forecasts[CHALLENGER])


def test_test_windows_do_not_affect_the_weights(
    fresh_root: Root, trained_blend: TrainingResult, tmp_path: Path
) -> None:
    other = train(write_rising_series(tmp_path, last_offset=1000.0), SPEC, fresh_root)
    assert other.scores != trained_blend.scores
    assert other.model.blend_weights == trained_blend.model.blend_weights
    assert other.model.facts["blend"] == trained_blend.model.facts["blend"]
    for name in ("blend.json", "conformal.json", "weights.safetensors", "golden.json"):
        assert (other.bundle / name).read_bytes() == (trained_blend.bundle / name).read_bytes()


def test_a_blend_can_be_retrained_against_a_blended_champion(fresh_root: Root, tmp_path: Path) -> None:
    data = write_rising_series(tmp_path)
    policy = Policy(zero_shot=False)  # the network is hardly trained
    first = retrain(data, SPEC, fresh_root, RetrainOptions(policy=policy))
    assert first.verdict.should_promote, first.verdict
    again = retrain(data, SPEC, fresh_root, RetrainOptions(policy=policy, force_retrain=True))
    assert not again.verdict.should_promote, "the same model is no better than the champion"
    assert set(again.training.scores) == {CHALLENGER, NETWORK, "champion", *BASELINES}


def test_without_a_blend_no_output_mentions_one(fresh_root: Root, tmp_path: Path) -> None:
    plain = train(write_rising_series(tmp_path), make_small_spec(), fresh_root)
    assert plain.model.blend_weights == {}
    assert set(plain.scores) == {CHALLENGER, *BASELINES}
    assert "blend" not in plain.model.facts
    assert "Blend" not in (plain.bundle / "card.md").read_text()
    run = create_client(fresh_root.store_uri).get_run(plain.run_id)
    assert not [name for name in run.data.metrics if "pure" in name]
    assert "blend" not in run.data.tags


def test_a_blend_without_its_package_is_rejected_before_a_run_is_created(
    fresh_root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "statsforecast", None)
    monkeypatch.setitem(sys.modules, "statsforecast.models", None)
    with pytest.raises(MissingPackage, match="statsforecast"):
        train(write_rising_series(tmp_path), SPEC, fresh_root)
    assert not fresh_root.bundles.exists()
    assert not create_client(fresh_root.store_uri).search_experiments(filter_string="name = 'small'")


def test_the_command_line_requests_and_reports_a_blend(
    trained_blend: TrainingResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rising_series(tmp_path)
    config = write_config(tmp_path / "small.yaml", make_small_spec())
    for options in (SpecOptions(config, blend=(THETA,)), SpecOptions(write_config(tmp_path / "blend.yaml", SPEC))):
        spec = options.read_spec()
        assert spec is not None
        assert spec.blend == (THETA,)
    assert run_command("train", data.source, "--blend", "prophet", "--root", str(tmp_path / "none")) == 2
    for name in ("forecast", "backtest"):
        capsys.readouterr()
        assert run_command(name, str(trained_blend.bundle), data.source) == 0
        assert (
            f"small is a blend: {100 * trained_blend.model.blend_weights[NETWORK]:g} % network"
            in capsys.readouterr().err
        )
    assert run_command("verify", str(trained_blend.bundle)) == 0
    assert "; a blend: " in capsys.readouterr().out
