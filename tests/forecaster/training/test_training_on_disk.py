"""A training from a panel on disk computes what the training from the panel in memory does; very many series are sampled."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from torch import Tensor

from forecaster import Forecaster
from forecaster.data import split
from forecaster.data.frames.panel import to_panel
from forecaster.data.on_disk.parquet import ParquetSource, read_parquet_panel
from forecaster.errors import InputError
from forecaster.series import Panel
from forecaster.training.model_card import render_model_card
from forecaster.training.sequence import TrainedModel, train_model
from tests.factories import make_spec, make_wave

TRAINING = {"steps": 6, "epoch_steps": 3, "batch": 8, "valid_windows": 2, "weighting": "seasonal_error"}


def write_waves(path: Path, *, series: int) -> pd.DataFrame:
    frames = [
        pd.DataFrame(
            {
                "unique_id": f"s{index}",
                "ds": pd.date_range("2026-01-01", periods=50 + index % 3, freq="h"),
                "y": make_wave(50 + index % 3, seed=index),
                "load": make_wave(50 + index % 3, seed=100 + index),
                "region": "north" if index % 2 else "south",
            }
        )
        for index in range(series)
    ]
    frame = pd.concat(frames, ignore_index=True)
    frame.to_parquet(path)
    return frame


def read(path: Path, folder: Path) -> Panel:
    source = ParquetSource(path, static=("region",), channels=("load",))
    return read_parquet_panel(source, folder=folder, rows_per_part=150)


def weights(trained: TrainedModel) -> dict[str, Tensor]:
    return dict(trained.model.network.state_dict())


def test_the_weights_intervals_and_facts_are_the_same(tmp_path: Path) -> None:
    frame = write_waves(tmp_path / "data.parquet", series=7)
    spec = make_spec(calendar=("weekday:1",), static=("region",), channels=("load",), training=TRAINING)
    in_memory = train_model(to_panel(frame, static=("region",), channels=("load",)), spec, facts={"data": "waves"})
    on_disk = train_model(read(tmp_path / "data.parquet", tmp_path), spec, facts={"data": "waves"})
    assert all((value == weights(in_memory)[name]).all() for name, value in weights(on_disk).items())
    assert on_disk.model.facts == in_memory.model.facts
    assert render_model_card(on_disk.model) == render_model_card(in_memory.model)
    calibrations = [trained.model.calibration for trained in (on_disk, in_memory)]
    assert calibrations[0] is not None
    assert calibrations[1] is not None
    assert calibrations[0].model_dump_json() == calibrations[1].model_dump_json()


def test_very_many_series_are_calibrated_and_tested_on_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_waves(tmp_path / "data.parquet", series=9)
    monkeypatch.setattr(split, "MAX_EVALUATED_ORIGINS", 6)
    trained = train_model(
        read(tmp_path / "data.parquet", tmp_path), make_spec(training=TRAINING), facts={"data": "waves"}
    )
    assert trained.backtest is not None
    assert [item.id for item in trained.backtest.series] == ["s0", "s1", "s3", "s4", "s6", "s7"]
    assert trained.model.facts["evaluated_series"] == {"calibration": 3, "test": 6}
    assert "calibrated on 3 and the scores measured on 6 of the 9 series" in render_model_card(trained.model)


@pytest.mark.filterwarnings("ignore::forecaster.api.ForecastWarning")
def test_a_forecaster_fits_the_files_of_a_path(tmp_path: Path) -> None:
    frame = write_waves(tmp_path / "data.parquet", series=3)
    spec = make_spec(training=TRAINING)
    from_path = Forecaster(spec=spec).fit(str(tmp_path / "data.parquet"), progress=False)
    from_frame = Forecaster(spec=spec).fit(frame.drop(columns=["load", "region"]), progress=False)
    pd.testing.assert_frame_equal(from_path.predict(level=80), from_frame.predict(level=80), check_dtype=False)
    assert from_path.model.facts["data"] == "data.parquet"
    with pytest.raises(InputError, match="`drop_partial`"):
        Forecaster(spec=spec, drop_partial=True).fit(tmp_path / "data.parquet")
