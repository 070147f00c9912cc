"""A batch forecasts every series once, whatever the layout of its input, and continues where it was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forecaster.batch import read_archive, shard, shuffle
from forecaster.batch.job import BatchJob, JobShare, run_batch, validate_rejects
from forecaster.batch.manifest import ReadingOptions, read_manifest
from forecaster.batch.shard import identify_model
from forecaster.batch.stores import Store
from forecaster.bundle.artifact import load_predictor, save_bundle
from forecaster.data.encoding import fit_encoding
from forecaster.data.frames.panel import to_panel
from forecaster.errors import InputError, ManifestMismatch, MissingColumn, NoData, TooManyRejects
from forecaster.metrics import seasonal_error
from forecaster.model.regressor import build_network
from forecaster.prediction.fitted_model import FittedModel
from tests.factories import START, make_spec
from tests.forecaster.batch.conftest import STEPS, make_rows, read_digests, shuffle_rows, write_files

ROWS = make_rows(12)
TRUNCATED = ROWS.slice(7)


def forecast_directly(job: BatchJob, table: pa.Table) -> dict[str, np.ndarray]:
    """Returns the mean forecast of each series, in one batch of the library."""
    panel = to_panel(table.to_pandas())
    outcomes = load_predictor(job.bundle).forecast_batch(panel.series, job.horizon)
    return {outcome.id: outcome.mean for outcome in outcomes}


def read_output(job: BatchJob) -> pa.Table:
    return pq.read_table(f"{job.output}/as_of={job.as_of}", partitioning=None)


def assert_every_series_once(job: BatchJob, table: pa.Table = ROWS) -> None:
    expected, written = forecast_directly(job, table), read_output(job).to_pandas()
    assert len(written) == len(expected) * job.horizon
    for unique_id, rows in written.groupby("unique_id"):
        np.testing.assert_array_equal(rows["forecaster"], expected[unique_id])
        assert list(rows["step"]) == list(range(1, job.horizon + 1))


@pytest.mark.parametrize(
    ("tables", "layout", "shards"),
    [
        pytest.param({"one.parquet": ROWS}, "auto", 3, id="one sorted file"),
        pytest.param({"one.parquet": TRUNCATED}, "auto", 3, id="row groups end within series"),
        pytest.param(
            {"b.parquet": ROWS.slice(0, 6 * STEPS), "a.parquet": ROWS.slice(6 * STEPS)}, "auto", 3, id="ranges of ids"
        ),
        pytest.param({"one.parquet": shuffle_rows(ROWS)}, "auto", 3, id="unsorted"),
        pytest.param(
            {f"{number}.parquet": ROWS.slice(number * 96, 96) for number in range(3)}, "files", 3, id="stated"
        ),
        pytest.param(
            {
                f"unique_id=s{number:03d}/a.parquet": ROWS.slice(number * STEPS, STEPS).drop_columns("unique_id")
                for number in range(12)
            },
            "auto",
            3,
            id="partitioned by id",
        ),
        pytest.param({"_draft.parquet": ROWS, "day=1/a.parquet": ROWS}, "shuffle", 3, id="forced shuffle"),
    ],
)
def test_every_series_is_forecast_once(
    job: BatchJob, tmp_path: Path, tables: dict[str, pa.Table], layout: str, shards: int
) -> None:
    write_files(tmp_path / "input", tables)
    job = replace(job, layout=layout)
    report = run_batch(job)
    assert_every_series_once(job, TRUNCATED if TRUNCATED in tables.values() else ROWS)
    assert (report.series, report.rejected, report.shards, report.is_complete) == (12, 0, shards, True)
    assert not (tmp_path / "output" / "_shuffle").exists()


def test_a_batch_is_bytewise_the_same_again_and_in_an_object_store(job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": shuffle_rows(ROWS)})
    run_batch(job)
    first = read_digests(tmp_path / "output")
    run_batch(replace(job, output=str(tmp_path / "again"), scratch=str(tmp_path / "scratch")))
    assert read_digests(tmp_path / "again") == first
    memory = fsspec.filesystem("memory")
    try:
        memory.put(f"{tmp_path}/input/", "/bucket/input/", recursive=True)
        stored = replace(job, source="memory://bucket/input", output="memory://bucket/output")
        assert run_batch(stored).is_complete
        assert {name: memory.cat(f"/bucket/output/{name}") for name in first} == first
        assert not memory.exists("/bucket/output/_shuffle")
        assert run_batch(stored).computed == 0
        assert read_archive(stored.output, as_of=job.as_of).equals(read_archive(job.output))
        with pytest.raises(InputError, match="found memory://"):
            run_batch(replace(stored, workers=2, output="memory://bucket/other"))
    finally:
        memory.rm("/bucket", recursive=True)


def test_finished_shards_are_kept_and_lost_or_damaged_ones_computed_again(job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": ROWS})
    assert run_batch(job).computed == 3
    before = read_digests(tmp_path / "output")
    [first, second, third] = sorted((tmp_path / "output" / "as_of=2026-01-31").iterdir())
    inode = third.stat().st_ino
    first.unlink()
    second.write_bytes(b"PAR1")
    assert run_batch(job).computed == 2
    assert read_digests(tmp_path / "output") == before
    assert third.stat().st_ino == inode
    assert run_batch(job).computed == 0


def test_a_batch_refuses_to_continue_as_another(job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": ROWS})
    run_batch(job)
    for changed, field in (
        (replace(job, horizon=4), "horizon"),
        (replace(job, model=job.model.model_copy(update={"version": "small/2"})), "model"),
        (replace(job, reading=ReadingOptions(zone="UTC")), "options of reading"),
    ):
        with pytest.raises(
            ManifestMismatch, match=f"Expected the {field} with which the batch of 2026-01-31 was started"
        ):
            run_batch(changed)
    write_files(tmp_path / "input", {"a.parquet": make_rows(12, first=1)})
    with pytest.raises(ManifestMismatch, match="Expected the input"):
        run_batch(job)


def test_series_without_a_forecast_are_rejected_with_their_reason(job: BatchJob, tmp_path: Path) -> None:
    short = make_rows(1, steps=2, first=20)
    write_files(tmp_path / "input", {"a.parquet": pa.concat_tables([ROWS, ROWS.slice(0, 1), short])})
    report = run_batch(job)
    assert (report.series, report.rejected) == (13, 1)
    assert "1 repeated rows were dropped" in report.repairs
    [reject] = pq.read_table(tmp_path / "output" / "_rejects", partitioning=None).to_pylist()
    assert (reject["unique_id"], reject["code"], reject["as_of"]) == ("s020", "history_too_short", "2026-01-31")
    assert "has 2 steps" in reject["message"]
    validate_rejects(report, max_rejects=1.0)
    validate_rejects(report, max_rejects=0.1)
    with pytest.raises(TooManyRejects, match=r"at most 0\.05 series without a forecast \(a share\); found 1 of 13"):
        validate_rejects(report, max_rejects=0.05)


def test_every_row_names_the_night_the_model_and_the_scale_of_its_history(job: BatchJob, tmp_path: Path) -> None:
    table = ROWS.slice(0, STEPS).filter(pa.array([number not in (3, 9) for number in range(STEPS)]))
    write_files(tmp_path / "input", {"a.parquet": table})
    run_batch(replace(job, level=()))
    rows = read_output(job)
    assert rows.column_names == [
        *("unique_id", "ds", "step", "forecaster", "scale", "as_of", "model_version", "model_digest")
    ]
    first = rows.to_pylist()[0]
    assert (first["as_of"], first["model_version"], first["model_digest"]) == (
        *("2026-01-31", "small/1"),
        job.model.digest,
    )
    [series] = to_panel(table.to_pandas(), freq="h").series
    assert np.isnan(series.y).sum() == 2
    assert first["scale"] == pytest.approx(seasonal_error(series.y, season=4))
    hive = pq.read_table(tmp_path / "output")  # as any reader of Hive data sets sees the archive
    assert set(hive.column("as_of").to_pylist()) == {"2026-01-31"}
    assert hive.num_rows == rows.num_rows


@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
def test_a_limit_forecasts_the_first_series_as_the_whole_batch_does(
    job: BatchJob, tmp_path: Path, shuffled: bool
) -> None:
    table = shuffle_rows(ROWS) if shuffled else ROWS
    write_files(tmp_path / "input", {"a.parquet": table})
    report = run_batch(replace(job, limit=5))
    assert report.series == 5
    ids = table.column("unique_id").unique().to_pylist()[:5]
    assert_every_series_once(job, table.filter(pa.compute.is_in(table.column("unique_id"), pa.array(ids))))


def test_several_jobs_share_a_batch(job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": shuffle_rows(ROWS)})
    reports = [run_batch(replace(job, share=JobShare(index, 2))) for index in range(2)]
    assert [report.computed for report in reports] == [2, 1]
    assert [report.is_complete for report in reports] == [False, True]
    assert_every_series_once(job)
    with pytest.raises(InputError, match=r"Expected a shard from 0/2 to 1/2; found 2/2"):
        run_batch(replace(job, share=JobShare(2, 2)))


def test_columns_and_files_are_checked_before_any_work(job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": ROWS})
    with pytest.raises(MissingColumn, match=r"a\.parquet; value not found"):
        run_batch(replace(job, reading=ReadingOptions(y_column="value")))
    with pytest.raises(NoData, match="found none"):
        run_batch(replace(job, source=str(tmp_path / "nothing")))
    (tmp_path / "input" / "b.parquet").write_bytes(b"a,b\n1,2\n" * 10)
    with pytest.raises(InputError, match="Expected a Parquet file"):
        run_batch(job)
    with pytest.raises(InputError, match="Expected an output outside of the input"):
        run_batch(replace(job, output=f"{job.source}/forecasts"))
    with pytest.raises(InputError, match="Expected a date"):
        run_batch(replace(job, source=str(tmp_path / "input" / "a.parquet"), as_of="tonight"))
    assert read_manifest(Store(job.output), job.as_of) is None


def test_ids_are_text_and_columns_have_their_own_names(job: BatchJob, tmp_path: Path) -> None:
    ids = np.repeat(np.arange(12), STEPS)
    table = pa.table({"shop": ids, "day": ROWS.column("ds"), "sales": ROWS.column("y")})
    write_files(tmp_path / "input", {"region=north/a.parquet": table})
    reading = ReadingOptions(id_column="shop", ds_column="day", y_column="sales")
    report = run_batch(replace(job, reading=reading))
    written = read_output(job).to_pandas()
    assert report.shards == 3
    assert sorted(written["shop"].unique(), key=int) == [str(number) for number in range(12)]
    expected = forecast_directly(job, ROWS)
    np.testing.assert_array_equal(written[written["shop"] == "7"]["forecaster"], expected["s007"])


def test_a_large_row_group_is_shuffled_in_parts(job: BatchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "input", {"a.parquet": shuffle_rows(ROWS)}, row_group_size=ROWS.num_rows)
    run_batch(replace(job, output=str(tmp_path / "whole")))
    monkeypatch.setattr(shuffle, "MAX_FLUSH_ROWS", 64)
    monkeypatch.setattr(shard, "MAX_CHUNK_ROWS", 2 * STEPS)  # series by series changes no forecast
    run_batch(job)
    assert_every_series_once(job)
    order = [("unique_id", "ascending"), ("step", "ascending")]
    whole = pq.read_table(tmp_path / "whole", partitioning=None)
    assert read_output(job).sort_by(order).equals(whole.sort_by(order))


def test_covariates_and_static_columns_are_read_with_their_future(job: BatchJob, tmp_path: Path) -> None:
    future = job.horizon
    table = make_rows(6, steps=STEPS + future)
    is_future = np.tile(np.arange(STEPS + future) >= STEPS, 6)
    y = table.column("y").to_numpy().copy()
    y[is_future] = np.nan
    price = np.random.default_rng(1).normal(size=len(y))
    table = table.set_column(2, "y", pa.array(y, from_pandas=True)).append_column("price", pa.array(price))
    table = table.append_column("shop", pa.array(np.where(np.arange(len(y)) < len(y) // 2, "north", "south")))
    panel = to_panel(table.to_pandas(), covariates=["price"], static=["shop"])
    spec = make_spec(covariates=("price",), static=("shop",))
    encoding = fit_encoding(panel, calendar=(), covariates=("price",), static=("shop",))
    network = build_network(
        spec, seed=1, num_covariates=encoding.num_covariates, static_cardinalities=encoding.static_cardinalities
    )
    model = FittedModel(spec, "h", 4, START, encoding, network)
    save_bundle(model, tmp_path / "bundle", card="# covariates")
    outcomes = load_predictor(tmp_path / "bundle").forecast_batch(panel.series, future)
    for name, rows in (("sorted", table), ("shuffled", shuffle_rows(table))):
        write_files(tmp_path / name, {"a.parquet": rows})
        identity = identify_model(tmp_path / "bundle", version=None, freq=None, season=None)
        changed = replace(job, bundle=tmp_path / "bundle", model=identity.model, source=str(tmp_path / name))
        run_batch(replace(changed, output=str(tmp_path / f"{name}-output")))
        found = pq.read_table(tmp_path / f"{name}-output", partitioning=None).sort_by("unique_id").to_pandas()
        expected = np.concatenate([outcome.mean for outcome in outcomes])
        np.testing.assert_array_equal(found.sort_values(["unique_id", "step"])["forecaster"], expected)


def test_two_processes_do_not_run_one_job(job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": ROWS})
    first = replace(job, share=JobShare(0, 2))
    run_batch(first)
    manifest = read_manifest(Store(job.output), job.as_of)
    assert manifest is not None
    with Store(job.output).hold_lock(manifest.lock_name(0)):
        with pytest.raises(InputError, match="Expected no other process of this batch"):
            run_batch(first)
        assert run_batch(replace(job, share=JobShare(1, 2))).is_complete
    assert_every_series_once(job)
