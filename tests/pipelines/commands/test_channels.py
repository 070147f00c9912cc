"""A model that reads channels, on the command line and in a real store: trained, promoted, scored, asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from forecaster.bundle import artifact
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import CHAMPION, Registry, connect
from forecaster.spec import Spec
from pipelines.cli import main
from pipelines.settings import Root
from pipelines.sources import Data, read
from tests.pipelines.conftest import noise, small

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's


def run(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_a_model_with_channels_lives_on_the_command_line(
    fresh: Root, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = Spec.parse(small().model_dump() | {"channels": ["heat"]}, where="a test")
    config, table, where = tmp_path / "small.yaml", tmp_path / "warm.csv", ("--root", fresh.path)
    config.write_text(yaml.safe_dump(spec.model_dump()))
    heat = np.random.default_rng(1).normal(size=20 * 60)
    noise().assign(heat=np.where(np.arange(len(heat)) % 7 == 0, np.nan, heat)).to_csv(table, index=False)

    assert run("retrain", table, "--config", config, *where) == 0, capsys.readouterr().err
    version = Registry(fresh.store).resolve("small", CHAMPION)
    assert version.run_id is not None
    assert np.isfinite(connect(fresh.store).get_run(version.run_id).data.metrics["bt/exposure_gap"])
    assert run("verify", "small", *where) == 0
    assert run("backtest", "small", table, "--windows", 2, *where) == 0
    out = tmp_path / "forecast.csv"
    assert run("forecast", "small", table, "--levels", 0.9, "--out", out, *where) == 0

    assert run("train", table, "--config", config, *where) == 0
    [bundle] = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("bundle")]
    series = read(Data(str(table)).for_spec(spec)).series
    outcomes = Predictor(artifact.load(Path(bundle))).forecast_each(series, 4)
    means = np.concatenate([outcome.mean for outcome in outcomes])  # type: ignore[union-attr]
    np.testing.assert_allclose(pd.read_csv(out)["mean"], means, rtol=1e-5)

    assert run("forecast", "small", data.source, *where) == 2
    assert "heat not found among" in capsys.readouterr().err
