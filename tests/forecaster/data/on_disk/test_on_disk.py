"""A panel on disk has the series of the panel in memory, and gives the same examples."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from forecaster.data.encoding import EMPTY_ENCODING, fit_encoding
from forecaster.data.frames.panel import to_panel
from forecaster.data.on_disk.parquet import ParquetSource, read_parquet_panel
from forecaster.data.on_disk.tape import TapeSeries
from forecaster.data.on_disk.windows import TapeWindows
from forecaster.data.on_disk.writer import TapeWriter
from forecaster.data.split import hold_out, sample_evenly
from forecaster.data.windows import CutoffIndex, EpochBatches, PanelTensor
from forecaster.errors import (
    BadStamp,
    CovariateUnknown,
    InputError,
    IrregularStamps,
    MissingColumn,
    NoData,
    NotANumber,
    SourceNotFound,
)
from forecaster.series import Panel, Series

STATIC, CHANNELS = ("region",), ("price",)


def make_frame(*, series: int = 12, zone: str | None = None) -> pd.DataFrame:
    """Returns series of several lengths and first days, with missing values and absent rows."""
    rng, frames = np.random.default_rng(0), []
    for index in range(series):
        steps = 40 + 3 * (index % 5)
        days = pd.date_range(f"2024-03-0{1 + index % 3}", periods=steps, freq="D", tz=zone)
        y = np.where(rng.random(steps) < 0.1, np.nan, 10 * index + rng.normal(size=steps))
        price = rng.normal(size=steps)
        frames.append(
            pd.DataFrame({"unique_id": f"s{index}", "ds": days, "y": y, "region": f"r{index % 4}", "price": price})
        )
    frame = pd.concat(frames, ignore_index=True)
    return frame.drop(index=[30, 31, 200]).reset_index(drop=True)


def read(path: Path, folder: Path, *, rows_per_part: int = 100, freq: str | None = "D", columns: bool = True) -> Panel:
    source = ParquetSource(path, freq, static=STATIC, channels=CHANNELS) if columns else ParquetSource(path, freq)
    return read_parquet_panel(source, folder=folder, rows_per_part=rows_per_part)


def test_a_panel_on_disk_has_the_series_of_the_panel_in_memory(tmp_path: Path) -> None:
    frame = make_frame(zone="Europe/Berlin")
    frame.to_parquet(tmp_path / "data.parquet")
    in_memory = to_panel(frame, freq="D", static=STATIC, channels=CHANNELS)
    on_disk = read(tmp_path / "data.parquet", tmp_path)
    assert isinstance(on_disk.series, TapeSeries)
    assert on_disk.digest == in_memory.digest
    assert on_disk.cutoff == in_memory.cutoff
    assert [item.id for item in on_disk.series] == [item.id for item in in_memory.series]  # s2 before s10
    assert [item.start for item in on_disk.series] == [item.start for item in in_memory.series]
    assert "absent rows" in " ".join(on_disk.repairs)


def test_the_order_and_the_partition_of_the_files_do_not_matter(tmp_path: Path) -> None:
    frame = make_frame()
    frame["unique_id"] = frame["unique_id"].str.replace("s", "00")
    for name, rows in reversed(list(frame.groupby("unique_id"))):
        folder = tmp_path / "data" / f"unique_id={name}"
        folder.mkdir(parents=True)
        rows.drop(columns="unique_id").to_parquet(folder / "part.parquet", index=False)
    expected = to_panel(frame, freq="D", static=STATIC, channels=CHANNELS)
    assert read(tmp_path / "data", tmp_path, rows_per_part=170).digest == expected.digest


def test_the_frequency_is_inferred_from_the_first_part_and_named_by_all_series(tmp_path: Path) -> None:
    starts = ("2020-01-01", "2020-02-01", "2020-04-01")
    days = [pd.date_range(start, periods=20, freq="3MS") for start in starts]
    frame = pd.concat(
        pd.DataFrame({"unique_id": f"s{index}", "ds": ds, "y": np.arange(20.0)}) for index, ds in enumerate(days)
    )
    frame.to_parquet(tmp_path / "data.parquet")
    on_disk = read(tmp_path / "data.parquet", tmp_path, freq="3MS", rows_per_part=20, columns=False)
    assert on_disk.digest == to_panel(frame, freq="3MS").digest
    assert {item.freq for item in on_disk.series} == {on_disk.freq} == {"3MS"}
    with pytest.raises(IrregularStamps, match="'s1'"):
        read(tmp_path / "data.parquet", tmp_path, freq=None, rows_per_part=20, columns=False)


def test_a_series_that_returns_is_refused_with_the_remedy(tmp_path: Path) -> None:
    frame = make_frame().sort_values("ds")
    frame.to_parquet(tmp_path / "data.parquet")
    with pytest.raises(InputError, match=r"(?s)rows of each series together.*Sort the rows by 'unique_id'"):
        read(tmp_path / "data.parquet", tmp_path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="nothing"):
        read(tmp_path / "absent", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoData, match="folder has none"):
        read(tmp_path / "empty", tmp_path)
    (tmp_path / "data.csv").write_text("unique_id,ds,y\na,2024-01-01,1\n")
    with pytest.raises(InputError, match=r"Expected Parquet files .* no other format"):
        read(tmp_path / "data.csv", tmp_path)
    make_frame().drop(columns="price").to_parquet(tmp_path / "data.parquet")
    with pytest.raises(MissingColumn, match="price"):
        read(tmp_path / "data.parquet", tmp_path)
    make_frame().assign(y="much").to_parquet(tmp_path / "data.parquet")
    with pytest.raises(NotANumber, match="much"):
        read(tmp_path / "data.parquet", tmp_path)
    make_frame().assign(y=np.nan).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(NoData, match="Expected at least one observed value"):
        read(tmp_path / "data.parquet", tmp_path)


def test_timestamps_of_another_kind_and_absent_folders_are_refused(tmp_path: Path) -> None:
    day = pd.Timestamp("2024-01-01")
    with TapeWriter(tmp_path) as writer:
        writer.append([Series("a", day, "D", np.ones(3))])
        with pytest.raises(BadStamp, match=r"'b'.*declare the zone"):
            writer.append([Series("b", day.tz_localize("UTC"), "D", np.ones(3))])
    with pytest.raises(InputError, match=r"Expected room .* or use another folder"):
        TapeWriter(tmp_path / "absent")


def test_a_cut_panel_stays_on_disk(tmp_path: Path) -> None:
    frame = make_frame()
    frame.to_parquet(tmp_path / "data.parquet")
    split = hold_out(read(tmp_path / "data.parquet", tmp_path), 5, min_history=40)
    expected = hold_out(to_panel(frame, freq="D", static=STATIC, channels=CHANNELS), 5, min_history=40)
    assert isinstance(split.history.series, TapeSeries)
    assert split.excluded_ids == expected.excluded_ids != ()
    assert (split.history.digest, split.full.digest) == (expected.history.digest, expected.full.digest)
    sample = sample_evenly(split.full.series, limit=3)
    assert isinstance(sample, TapeSeries)
    assert [item.id for item in sample] == [item.id for item in sample_evenly(expected.full.series, limit=3)]


@pytest.mark.parametrize("recent", [0.0, 2.0])
def test_the_examples_are_those_of_the_tensor(tmp_path: Path, recent: float) -> None:
    make_frame(zone="Europe/Berlin").to_parquet(tmp_path / "data.parquet")
    panel = hold_out(read(tmp_path / "data.parquet", tmp_path), 4).history
    encoding = fit_encoding(panel, calendar=("weekday:2",), covariates=(), static=STATIC)
    scales = torch.arange(2.0 * len(panel.series), dtype=torch.float64).reshape(-1, 2)
    assert isinstance(panel.series, TapeSeries)
    tensor = PanelTensor.from_series(
        list(panel.series), context=12, horizon=6, encoding=encoding, channels=CHANNELS
    )._replace(error_scales=scales)
    windows = TapeWindows.from_series(panel.series, encoding=encoding, channels=CHANNELS)._replace(error_scales=scales)
    batches = [
        EpochBatches(
            CutoffIndex.from_source(source, min_history=3), 12, 6, 16, 5, 0, 1, batches_per_chunk=2, recent=recent
        )
        for source in (tensor, windows)
    ]
    for expected, example in zip(*batches, strict=True):
        for first, second in zip((*expected.window, *expected[1:]), (*example.window, *example[1:]), strict=True):
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
            assert first is not None


def test_columns_that_are_not_on_disk_are_refused(tmp_path: Path) -> None:
    make_frame().to_parquet(tmp_path / "data.parquet")
    series = read(tmp_path / "data.parquet", tmp_path, columns=False).series
    assert isinstance(series, TapeSeries)
    with pytest.raises(CovariateUnknown, match="price"):
        TapeWindows.from_series(series, encoding=EMPTY_ENCODING, channels=CHANNELS)


def test_an_epoch_needs_no_copy_of_the_values(tmp_path: Path) -> None:
    steps = 50_000
    with TapeWriter(tmp_path) as writer:
        for index in range(20):
            writer.append([Series(f"s{index}", 0, "1", np.arange(float(steps)) + index)])
        series = writer.finish(freq="1")
    tracemalloc.start()
    history = hold_out(Panel(series, "1"), 10).history
    assert isinstance(history.series, TapeSeries)
    cutoffs = CutoffIndex.from_source(TapeWindows.from_series(history.series, encoding=EMPTY_ENCODING), min_history=8)
    examples = list(EpochBatches(cutoffs, 16, 4, 32, 50, 0, 0))
    panel_digest = history.digest
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(cutoffs) == 20 * (steps - 10 - 8)
    assert (torch.diff(torch.cat([item.future for item in examples])) == 1).all()
    assert len(panel_digest) == 64
    assert peak < 20 * steps * 8 / 10
