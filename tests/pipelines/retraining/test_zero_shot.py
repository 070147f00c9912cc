"""Trained models beside the pretrained network: whether the gate promotes them, and which reports compare the two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle.pretrained.specification import base_spec
from forecaster.registry.registry import CHAMPION
from pipelines.promotion.policy import Policy
from pipelines.retraining.retrain import RetrainOptions, RetrainResult, retrain
from pipelines.settings import Root
from pipelines.sources import DataSource
from tests.pipelines.conftest import make_small_spec
from tests.pipelines.retraining.test_retrain import run_command
from tests.system.processes import write_config

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]  # raised by Lightning


def write_hourly_waves(folder: Path) -> DataSource:
    """Writes noisy series with a period of 24 hours, which the small network with its short context cannot follow."""
    step, rng = np.arange(240), np.random.default_rng(0)
    frames = [
        pd.DataFrame(
            {
                "unique_id": f"meter_{number}",
                "ds": pd.date_range("2026-01-01", periods=len(step), freq="h"),
                "y": 20 + 5 * np.sin(2 * np.pi * (step + number) / 24) + rng.normal(size=len(step)),
            }
        )
        for number in range(12)
    ]
    pd.concat(frames).to_csv(folder / "waves.csv", index=False)
    return DataSource(str(folder / "waves.csv"))


def list_outcomes(result: RetrainResult) -> dict[str, bool | None]:
    return {check.name: check.passed for check in result.verdict.checks}


def test_a_model_that_is_clearly_worse_than_the_pretrained_network_is_refused(
    fresh_root: Root, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_hourly_waves(tmp_path)
    config = tmp_path / "small.yaml"
    write_config(config, make_small_spec().model_copy(update={"season": 24}))
    policy = tmp_path / "policy.yaml"
    policy.write_text("naive_room: 100.0\n")  # only this check is of interest
    command = ["retrain", data.source, "--config", config, "--root", fresh_root.path]
    assert run_command(*command) == 3
    output = capsys.readouterr()
    assert "is clearly worse than the pretrained network's" in output.err
    assert "Train with a preset" in output.err
    policy = tmp_path / "policy.yaml"
    policy.write_text("zero_shot: false\nnaive_room: 100.0\n")
    assert run_command(*command, "--policy", policy) == 0
    assert "is not judged against the pretrained network's" in capsys.readouterr().out


def test_a_model_that_is_not_clearly_worse_than_the_pretrained_network_is_promoted(
    fresh_root: Root, noise_data: DataSource
) -> None:
    result = retrain(noise_data, make_small_spec(), fresh_root)
    assert list_outcomes(result)["zero_shot"] is True
    assert result.verdict.should_promote
    assert result.training.scores["zero_shot"]["mase"] > 0
    assert "the pretrained network's" in str(result.verdict)


def test_the_pretrained_network_is_no_baseline_of_itself(fresh_root: Root, noise_data: DataSource) -> None:
    training = {"initial": "base", "steps": 0}
    untrained = base_spec(4, horizon=4, name="small", training=training)
    first = retrain(noise_data, untrained, fresh_root)
    assert "zero_shot" not in first.training.scores
    assert "zero_shot" not in list_outcomes(first)
    assert first.champion_version is not None
    second = retrain(noise_data, make_small_spec(), fresh_root, RetrainOptions(policy=Policy(zero_shot=False)))
    scores = second.training.scores
    assert scores[CHAMPION]["mase"] == pytest.approx(scores["zero_shot"]["mase"], rel=1e-4)
