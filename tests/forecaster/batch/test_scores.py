"""An archive is read back by night, and its scores are those of the slow, obvious loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forecaster.batch.archive import list_nights, open_archive, read_archive
from forecaster.batch.job import BatchJob, run_batch
from forecaster.batch.manifest import FOLDER, BatchModel, Catalogue, NightRecord
from forecaster.batch.scores import Actuals, score_archive
from forecaster.errors import BadStamp, DuplicateStamp, InputError, MissingColumn, NoData
from forecaster.metrics import coverage, mae, msis, pinball
from tests.forecaster.batch.conftest import STEPS, make_rows, write_files

HORIZON = 4


def write_archive(
    folder: Path, *, version: str = "small/1", seed: int = 0, as_of: tuple[str, ...] = ("2026-01-30", "2026-01-31")
) -> Path:
    """Writes invented forecasts of three series as a batch does; the second night begins a day later."""
    rng, nights = np.random.default_rng(seed), []
    for number, night in enumerate(as_of):
        first = np.datetime64("2026-01-30", "us") + number * np.timedelta64(1, "D")
        ids = np.repeat(["a", "b", "c"], HORIZON)
        mean = rng.normal(10, 1, len(ids))
        table = pa.table(
            {
                "unique_id": ids,
                "ds": np.tile(first + np.arange(HORIZON) * np.timedelta64(1, "D"), 3),
                "step": np.tile(np.arange(1, HORIZON + 1, dtype=np.int32), 3),
                "forecaster": mean,
                "forecaster-lo-80": mean - 1,
                "forecaster-hi-80": mean + 1,
                "scale": pa.array(np.repeat([1.0, 2.0, np.nan], HORIZON), from_pandas=True),
                "as_of": pa.array([night] * len(ids)).dictionary_encode(),
                "model_version": pa.array([version] * len(ids)).dictionary_encode(),
                "model_digest": pa.array(["0" * 64] * len(ids)).dictionary_encode(),
            }
        )
        write_files(folder, {f"as_of={night}/part-00000.parquet": table})
        model = BatchModel(name="small", version=version, digest="0" * 64)
        nights.append(
            NightRecord(
                as_of=night,
                model=model,
                horizon=HORIZON,
                level=(80.0,),
                quantiles=(),
                id_column="unique_id",
                ds_column="ds",
                files=1,
                series=3,
                rejected=0,
                rows=len(ids),
            )
        )
    (folder / FOLDER).mkdir(parents=True)
    (folder / FOLDER / "catalogue.json").write_text(Catalogue(nights=tuple(nights)).model_dump_json())
    return folder


def make_actuals(*, days: int = 6) -> pa.Table:
    """Returns actuals of the first days; one value is missing, and one series has none."""
    ds = np.tile(np.datetime64("2026-01-28", "us") + np.arange(days) * np.timedelta64(1, "D"), 2)
    y = np.random.default_rng(5).normal(10, 1, len(ds))
    y[4] = np.nan
    return pa.table({"unique_id": np.repeat(["a", "b"], days), "ds": ds, "y": y, "region": np.repeat(["n", "s"], days)})


def score_slowly(archive: Path, actuals: pa.Table, by: list[str]) -> pd.DataFrame:
    """The obvious version: pandas, one group at a time."""
    rows = read_archive(str(archive)).to_pandas().merge(actuals.to_pandas(), on=["unique_id", "ds"], how="left")
    rows = rows.rename(columns={"model_version": "version"})
    scores = []
    for group, part in rows.groupby(by, observed=True) if by else [((), rows)]:
        scored = part[part["y"].notna()]
        y, mean, low, high = (
            scored[name].to_numpy()[:, None] for name in ("y", "forecaster", "forecaster-lo-80", "forecaster-hi-80")
        )
        scale = scored["scale"].to_numpy()
        quantiles, levels = np.stack([low, high], axis=-1), np.array([0.1, 0.9])
        scores.append(
            {
                **dict(zip(by, group, strict=True)),
                "rows": len(part),
                "scored": len(scored),
                "mae": mae(y, mean).mean(),
                "mase": np.nanmean(mae(y, mean) / scale),
                "bias": (mean - y).mean(),
                "wql": (2 * pinball(y, quantiles, levels).sum(axis=(0, 1)) / np.abs(y).sum()).mean(),
                "coverage_80": coverage(y, low, high).mean(),
                "width_80": (high - low).mean(),
                "msis_80": np.nanmean(msis(y, low, high, level=0.8, scale=scale)),
            }
        )
    return pd.DataFrame(scores)


@pytest.mark.parametrize("by", [(), ("step",), ("region", "as_of"), ("version",)], ids=str)
def test_scores_are_those_of_the_obvious_loops(tmp_path: Path, by: tuple[str, ...]) -> None:
    archive, actuals = write_archive(tmp_path / "archive"), make_actuals()
    found = score_archive(str(archive), Actuals(actuals), by=by).to_pandas()
    expected = score_slowly(archive, actuals, list(by))
    expected = expected[expected["scored"] > 0] if "region" in by else expected
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_dtype=False)
    if not by:
        assert (found["rows"][0], found["scored"][0]) == (24, 12)


def test_two_archives_are_compared_on_the_rows_that_both_have(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "champion")
    rival = write_archive(tmp_path / "challenger", version="small/2", seed=1, as_of=("2026-01-30",))
    actuals = make_actuals(days=8)
    scores = score_archive(str(archive), Actuals(actuals), by=("version",), rival=str(rival))
    assert scores.column("archive").to_pylist() == [str(archive), str(rival)]
    assert scores.column("version").to_pylist() == ["small/1", "small/2"]
    keys = ["unique_id", "ds", "as_of"]
    both = read_archive(str(archive)).to_pandas().merge(read_archive(str(rival)).to_pandas(), on=keys)
    both = both.merge(actuals.to_pandas().dropna(), on=keys[:2])
    assert 0 < len(both) < 24
    assert scores.column("scored").to_pylist() == scores.column("rows").to_pylist() == [len(both)] * 2
    expected = [(both[f"forecaster_{side}"] - both["y"]).abs().mean() for side in "xy"]
    np.testing.assert_allclose(scores.column("mae").to_numpy(), expected)


def test_unusable_actuals_are_refused(tmp_path: Path) -> None:
    archive, actuals = str(write_archive(tmp_path / "archive")), make_actuals()
    with pytest.raises(DuplicateStamp, match="series 'a' has 2 at 2026-01-28"):
        score_archive(archive, Actuals(pa.concat_tables([actuals, actuals.slice(0, 1)])))
    with pytest.raises(MissingColumn, match="value not found"):
        score_archive(archive, Actuals(actuals, y_column="value"))
    with pytest.raises(BadStamp, match="found int64"):
        score_archive(archive, Actuals(actuals.set_column(1, "ds", pa.array(range(actuals.num_rows)))))
    with pytest.raises(NoData, match="none of 24 rows has one"):
        score_archive(archive, Actuals(actuals.slice(0, 2)))
    with pytest.raises(InputError, match="a column of the forecasts"):
        score_archive(archive, Actuals(actuals), by=("scale",))


def test_nights_of_one_archive_are_read_by_their_date(job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": make_rows(6)})
    first = run_batch(job)
    run_batch(replace(job, as_of="2026-02-01T02:30", horizon=3))
    assert [night.as_of for night in list_nights(job.output)] == ["2026-01-31", "2026-02-01T02:30"]
    night = read_archive(job.output, as_of="2026-01-31")
    assert night.num_rows == first.rows == 30
    assert set(night.column("as_of").to_pylist()) == {"2026-01-31"}
    both = read_archive(job.output, columns=["as_of", "step"])
    assert both.num_rows == 30 + 18
    assert open_archive(job.output, as_of=["2026-02-01T02:30"]).count_rows() == 18
    assert set(pq.read_table(job.output).column("as_of").to_pylist()) == {"2026-01-31", "2026-02-01T02:30"}
    with pytest.raises(NoData, match=r"2026-03-01 in .*; found 2026-01-31, 2026-02-01T02:30"):
        read_archive(job.output, as_of="2026-03-01")
    with pytest.raises(MissingColumn, match="found 'median'"):
        read_archive(job.output, columns=["median"])
    actuals = make_rows(6, steps=STEPS + 4)  # the same histories, and the first four steps of the forecasts
    scores = score_archive(job.output, Actuals(actuals), by=("as_of",)).to_pydict()
    assert scores["scored"] == [24, 18]
    with pytest.raises(NoData, match="an archive with a finished batch"):
        list_nights(str(tmp_path / "input"))
