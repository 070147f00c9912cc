"""A model with channels on the command line, with a real store: train, promote, backtest, forecast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from forecaster.bundle import artifact
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import CHAMPION, Registry, create_client
from forecaster.spec import Spec
from pipelines.cli import main
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from tests.pipelines.conftest import make_noise_frame, make_small_spec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]  # raised by Lightning


def run_command(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as exit_error:
        return int(exit_error.code or 0)
    return 0


def test_the_command_line_supports_a_model_with_channels(
    fresh_root: Root, noise_data: DataSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = Spec.parse(make_small_spec().model_dump() | {"channels": ["heat"]}, where="a test")
    config, table, root_option = tmp_path / "small.yaml", tmp_path / "warm.csv", ("--root", fresh_root.path)
    config.write_text(yaml.safe_dump(spec.model_dump()))
    heat = np.random.default_rng(1).normal(size=20 * 60)
    make_noise_frame().assign(heat=np.where(np.arange(len(heat)) % 7 == 0, np.nan, heat)).to_csv(table, index=False)

    assert run_command("retrain", table, "--config", config, *root_option) == 0, capsys.readouterr().err
    version = Registry(fresh_root.store_uri).resolve("small", CHAMPION)
    assert version.run_id is not None
    assert np.isfinite(create_client(fresh_root.store_uri).get_run(version.run_id).data.metrics["bt/exposure_gap"])
    zero_shot = create_client(fresh_root.store_uri).get_run(version.run_id).data.metrics["bt/zero_shot/mase"]
    assert 0 < zero_shot < 2, "the pretrained network forecasts the target without the channel"
    assert run_command("verify", "small", *root_option) == 0
    assert run_command("backtest", "small", table, "--windows", 2, *root_option) == 0
    out = tmp_path / "forecast.csv"
    assert run_command("forecast", "small", table, "--levels", 0.9, "--out", out, *root_option) == 0

    assert run_command("train", table, "--config", config, *root_option) == 0
    [bundle] = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("bundle")]
    series = read_panel(DataSource(str(table)).for_spec(spec)).series
    outcomes = Predictor(artifact.load_bundle(Path(bundle))).forecast_batch(series, 4)
    means = np.concatenate([outcome.mean for outcome in outcomes])  # type: ignore[union-attr]
    np.testing.assert_allclose(pd.read_csv(out)["mean"], means, rtol=1e-5)

    assert run_command("forecast", "small", noise_data.source, *root_option) == 2
    assert "heat not found among" in capsys.readouterr().err
