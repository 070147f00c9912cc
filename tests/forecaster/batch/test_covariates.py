"""A batch reads covariates and static features from data sets of their own as it reads them from its input."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from forecaster.batch.job import BatchJob, run_batch
from forecaster.batch.manifest import BatchManifest, read_manifest
from forecaster.batch.plan import Shard, ShardPlan, find_id_ranges, plan_future
from forecaster.batch.shard import identify_model
from forecaster.batch.source import IdValue, Piece, RowGroup
from forecaster.batch.stores import Store
from forecaster.bundle.artifact import save_bundle
from forecaster.errors import DuplicateColumn, InputError, ManifestMismatch, MissingColumn, NoData
from tests.forecaster.batch.conftest import STEPS, make_rows, read_digests, shuffle_rows, write_files
from tests.forecaster.prediction.test_covariates import SKY_CATEGORIES, make_model

NUM_SERIES, HORIZON = 12, 5


def make_table() -> pa.Table:
    """Returns histories with a covariate of numbers and one of text, their future, and a static feature."""
    table = make_rows(NUM_SERIES, steps=STEPS + HORIZON)
    rng, rows = np.random.default_rng(1), table.num_rows
    y = table.column("y").to_numpy().copy()
    y[np.tile(np.arange(STEPS + HORIZON) >= STEPS, NUM_SERIES)] = np.nan
    table = table.set_column(2, "y", pa.array(y, from_pandas=True))
    table = table.append_column("heat", pa.array(np.round(rng.normal(size=rows), 3)))
    table = table.append_column("sky", pa.array(rng.choice(np.array(SKY_CATEGORIES), size=rows)))
    regions = np.where(np.arange(rows) < rows // 2, "north", "south")
    return table.append_column("region", pa.array(regions))


TABLE = make_table()
IS_FUTURE = pc.is_null(TABLE.column("y"))
HISTORIES = TABLE.filter(pc.invert(IS_FUTURE)).drop_columns("region")
FUTURE = TABLE.filter(IS_FUTURE).select(["unique_id", "ds", "heat", "sky"])
STATIC = TABLE.filter(IS_FUTURE).select(["unique_id", "region"]).group_by(["unique_id", "region"]).aggregate([])


@pytest.fixture(scope="module")
def covariate_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "covariates"
    save_bundle(make_model("rollout", calendar=()), folder, card="# covariates")
    return folder


@pytest.fixture
def covariate_job(job: BatchJob, covariate_bundle: Path, tmp_path: Path) -> BatchJob:
    identity = identify_model(covariate_bundle, version=None, freq=None, season=None)
    return replace(job, bundle=covariate_bundle, model=identity.model, shard_rows=2 * STEPS)


@pytest.fixture(scope="module")
def expected(covariate_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The forecasts from one table with everything, ordered by id and step."""
    folder = tmp_path_factory.mktemp("expected")
    write_files(folder / "input", {"a.parquet": TABLE})
    identity = identify_model(covariate_bundle, version=None, freq=None, season=None)
    source, output = str(folder / "input"), str(folder / "output")
    run_batch(BatchJob(covariate_bundle, identity.model, source, output, as_of="2026-01-31", horizon=HORIZON))
    return read_forecasts(output)


def read_forecasts(output: str) -> np.ndarray:
    rows = pq.read_table(f"{output}/as_of=2026-01-31", partitioning=None)
    return rows.sort_by([("unique_id", "ascending"), ("step", "ascending")]).column("forecaster").to_numpy()


def open_manifest(job: BatchJob) -> BatchManifest:
    manifest = read_manifest(Store(job.output), job.as_of)
    assert manifest is not None
    return manifest


def write_csv(path: Path, table: pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pacsv.write_csv(table, path)
    return path


def write_gzipped(folder: Path) -> None:
    folder.mkdir()
    text = write_csv(folder.parent / "future.csv", shuffle_rows(FUTURE)).read_bytes().replace(b'"2026', b"2026")
    (folder / "future.csv.gz").write_bytes(gzip.compress(text))


FUTURES: dict[str, Callable[[Path], object]] = {
    "sorted": lambda folder: write_files(folder, {"a.parquet": FUTURE}, row_group_size=HORIZON),
    "unsorted": lambda folder: write_files(folder, {"a.parquet": shuffle_rows(FUTURE)}, row_group_size=7),
    "partitioned": lambda folder: write_files(
        folder,
        {
            f"unique_id=s{number:03d}/a.parquet": FUTURE.slice(number * HORIZON, HORIZON).drop_columns("unique_id")
            for number in range(NUM_SERIES)
        },
    ),
    "csv": lambda folder: [
        write_csv(folder / f"{number}.csv", FUTURE.slice(number * 2 * HORIZON, 2 * HORIZON)) for number in range(6)
    ],
    "csv.gz": write_gzipped,
}
INPUTS = {
    "sorted": (HISTORIES, "auto"),
    "unsorted": (shuffle_rows(HISTORIES), "auto"),
    "files": (HISTORIES, "files"),
}


@pytest.mark.parametrize(
    ("histories", "future", "is_shuffled"),
    [
        ("sorted", "sorted", False),
        ("sorted", "unsorted", True),
        ("sorted", "partitioned", False),
        ("sorted", "csv", False),
        ("sorted", "csv.gz", True),
        ("unsorted", "sorted", True),
        ("unsorted", "csv", True),
        ("files", "sorted", False),
        ("files", "partitioned", False),
    ],
)
def test_forecasts_are_those_of_one_table_with_everything(
    covariate_job: BatchJob, tmp_path: Path, expected: np.ndarray, histories: str, future: str, is_shuffled: bool
) -> None:
    table, layout = INPUTS[histories]
    pieces = {f"{number}.parquet": table.slice(number * 2 * STEPS, 2 * STEPS) for number in range(6)}
    write_files(tmp_path / "input", pieces if layout == "files" else {"a.parquet": table})
    FUTURES[future](tmp_path / "future")
    write_csv(tmp_path / "static.csv", shuffle_rows(STATIC))
    places = {"future": str(tmp_path / "future"), "static": str(tmp_path / "static.csv")}
    job = replace(covariate_job, layout=layout, **places)
    report = run_batch(job)
    assert (report.series, report.rejected, report.shards) == (NUM_SERIES, 0, 6)
    np.testing.assert_array_equal(read_forecasts(job.output), expected)
    manifest = open_manifest(job)
    assert bool(manifest.future_slabs) == is_shuffled
    if not is_shuffled:  # a shard reads the row groups of its series, and those at its bounds
        assert all(sum(piece.stop - piece.first for piece in shard.future) <= 4 for shard in manifest.shards)
    assert not (tmp_path / "output" / "_shuffle").exists()
    assert run_batch(job).computed == 0


def test_a_batch_is_not_continued_with_other_covariates(covariate_job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": HISTORIES})
    write_csv(tmp_path / "future.csv", FUTURE)
    write_files(tmp_path, {"static.parquet": STATIC})
    job = replace(covariate_job, future=str(tmp_path / "future.csv"), static=str(tmp_path / "static.parquet"))
    run_batch(job)
    text = (tmp_path / "future.csv").read_text()
    (tmp_path / "future.csv").write_text(text.replace("sun", "hail", 1).replace("hail", "sun", 1))
    with pytest.raises(ManifestMismatch, match=r"Expected the future of covariates \(--future\)"):
        run_batch(job)
    (tmp_path / "future.csv").write_text(text)
    write_files(tmp_path, {"static.parquet": STATIC.slice(1)})
    with pytest.raises(ManifestMismatch, match=r"Expected the static features \(--static\)"):
        run_batch(job)
    write_files(tmp_path / "input", {"a.parquet": TABLE})
    with pytest.raises(ManifestMismatch):
        run_batch(replace(job, future=None, static=None))


def test_series_without_the_future_that_the_model_needs_are_rejected(
    covariate_job: BatchJob, tmp_path: Path, expected: np.ndarray
) -> None:
    write_files(tmp_path / "input", {"a.parquet": HISTORIES})
    text = FUTURE.set_column(2, "heat", FUTURE.column("heat").cast(pa.string()))
    cells = text.column("heat").to_pylist()
    cells[3 * HORIZON], cells[4 * HORIZON] = "warm", "NA"  # s003 and s004
    text = text.set_column(2, "heat", pa.array(cells))
    is_kept = pc.not_equal(text.column("unique_id"), "s001")
    unknown = text.slice(0, 1).set_column(0, "unique_id", pa.array(["elsewhere"]))
    table = pa.concat_tables([text.filter(is_kept), unknown])
    last = pc.and_(
        pc.equal(table.column("unique_id"), "s002"), pc.equal(table.column("ds"), pc.max(table.column("ds")))
    )
    write_csv(tmp_path / "future.csv", table.filter(pc.invert(last)))
    write_files(tmp_path, {"static.parquet": STATIC.slice(1)})
    job = replace(covariate_job, future=str(tmp_path / "future.csv"), static=str(tmp_path / "static.parquet"))
    report = run_batch(job)
    rejects = pq.read_table(tmp_path / "output" / "_rejects", partitioning=None).to_pylist()
    codes = {reject["unique_id"]: reject["code"] for reject in rejects}
    assert codes == {
        "s000": "covariate_unknown",
        "s001": "covariate_unknown",
        "s002": "covariate_unknown",
        "s003": "not_a_number",
        "s004": "covariate_unknown",
    }
    assert (report.series, report.rejected) == (NUM_SERIES, 5)
    np.testing.assert_array_equal(read_forecasts(job.output), expected[5 * HORIZON :])


def test_an_interrupted_shuffle_of_the_future_continues_with_the_same_bytes(
    covariate_job: BatchJob, tmp_path: Path
) -> None:
    write_files(tmp_path / "input", {"a.parquet": HISTORIES})
    FUTURES["unsorted"](tmp_path / "future")
    write_files(tmp_path, {"static.parquet": STATIC})
    job = replace(covariate_job, future=str(tmp_path / "future"), static=str(tmp_path / "static.parquet"))
    run_batch(replace(job, output=str(tmp_path / "undisturbed")))

    def stop_after_one(function: Callable[[int], object], steps: Sequence[int]) -> Iterator[object]:
        yield function(steps[0])
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_batch(job, run_steps=stop_after_one)
    names = [path.name for path in (tmp_path / "output" / "_shuffle").rglob("*.arrow")]
    assert sorted(names) == ["rows-00000.arrow", "rows-00001.arrow"]
    assert run_batch(job).is_complete
    assert read_digests(tmp_path / "output") == read_digests(tmp_path / "undisturbed")


def test_data_sets_that_cannot_be_used_are_refused_before_any_work(
    job: BatchJob, covariate_job: BatchJob, tmp_path: Path
) -> None:
    write_files(tmp_path / "input", {"a.parquet": HISTORIES})
    write_files(tmp_path, {"future.parquet": FUTURE, "static.parquet": pa.concat_tables([STATIC, STATIC.slice(0, 1)])})
    (tmp_path / "twice.csv").write_text("unique_id,ds,heat,sky,sky\ns001,2026-01-02,1,sun,sun\n")
    (tmp_path / "uneven.csv").write_text("unique_id,ds,heat,sky\ns001,2026-01-02,1,sun\ns001,2026-01-02\n")
    future, static = str(tmp_path / "future.parquet"), str(tmp_path / "static.parquet")
    for changed, error, message in (
        (replace(job, future=future), InputError, "no `future`, because the model 'small' reads no covariates"),
        (replace(job, static=static), InputError, "no `static`, because the model 'small' reads no static features"),
        (
            replace(covariate_job, future=future, static=static),
            InputError,
            "one row for each series in `static`; found 13",
        ),
        (replace(covariate_job, static=future), MissingColumn, r"future\.parquet; region not found"),
        (
            replace(covariate_job, future=str(tmp_path / "twice.csv"), static=static),
            DuplicateColumn,
            "one column 'sky'",
        ),
        (
            replace(covariate_job, future=str(tmp_path / "uneven.csv"), static=static),
            InputError,
            "CSV file with commas",
        ),
        (replace(covariate_job, static=static, output=f"{static}/out"), InputError, "output outside of the input"),
        (replace(covariate_job, future=future), MissingColumn, r"a\.parquet; region not found"),
    ):
        with pytest.raises(error, match=message):
            run_batch(changed)
    assert not (tmp_path / "output").exists()


def test_broken_and_contradictory_files_are_errors_that_name_them(covariate_job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": HISTORIES})
    write_csv(tmp_path / "future.csv", FUTURE)
    packed = bytearray(gzip.compress((tmp_path / "future.csv").read_bytes()))
    packed[300:360] = bytes(60)
    (tmp_path / "broken.csv.gz").write_bytes(packed)
    write_files(tmp_path / "mixed", {"a.parquet": FUTURE.slice(0, 30)})
    write_csv(tmp_path / "mixed" / "b.csv", FUTURE.slice(30))
    write_files(tmp_path, {"static.parquet": STATIC})
    with pq.ParquetWriter(tmp_path / "nothing.parquet", STATIC.schema):
        pass  # a file without row groups
    for future, static, shard_rows, error, message in (
        (
            "broken.csv.gz",
            "static.parquet",
            2 * STEPS,
            InputError,
            r"CSV file with commas in UTF-8 at .*broken\.csv\.gz",
        ),
        ("mixed", "static.parquet", 2 * STEPS, InputError, "same types of columns in .*mixed; .*ds"),
        ("mixed", "static.parquet", NUM_SERIES * STEPS, InputError, "same types of columns in .*mixed; .*ds"),
        ("future.csv", "nothing.parquet", 2 * STEPS, NoData, r"rows in .*; found none"),
    ):
        job = replace(
            covariate_job, future=str(tmp_path / future), static=str(tmp_path / static), shard_rows=shard_rows
        )
        with pytest.raises(error, match=message):
            run_batch(replace(job, output=str(tmp_path / f"{future} {static} {shard_rows}")))


def test_a_header_without_rows_has_no_series(covariate_job: BatchJob, tmp_path: Path) -> None:
    write_files(tmp_path / "input", {"a.parquet": HISTORIES})
    write_csv(tmp_path / "future.csv", FUTURE)
    (tmp_path / "static.csv").write_text("unique_id,region\n")
    report = run_batch(replace(covariate_job, future=str(tmp_path / "future.csv"), static=str(tmp_path / "static.csv")))
    assert (report.series, report.rejected) == (NUM_SERIES, NUM_SERIES)


def group(number: int, lowest: IdValue | None, highest: IdValue | None, *, rows: int = 10) -> RowGroup:
    return RowGroup(0, number, rows, lowest, highest)


def test_a_shard_reads_the_row_groups_of_the_future_that_may_have_its_ids() -> None:
    shards = (Shard(until=9), Shard(after=9, until=99), Shard(after=99))
    later = [group(0, 1, 10), group(1, 11, 50), group(2, 51, 200)]
    plan = plan_future(ShardPlan(shards), [], later, shard_rows=20)
    pieces = [Piece(0, 0, 1), Piece(0, 0, 3), Piece(0, 2, 3)]
    assert [shard.future for shard in plan.shards] == [(piece,) for piece in pieces]
    as_text = [group(0, "1", "10"), group(1, "11", "50"), group(2, "51", "9")]
    plan = plan_future(ShardPlan(shards), [], as_text, shard_rows=20)
    assert (plan.shards, len(plan.future_slabs)) == (shards, 2)
    files = (Shard(pieces=(Piece(0, 0, 1),)),) * 3
    with pytest.raises(InputError, match="in the order of ids with `--layout files`"):
        plan_future(ShardPlan(files), [group(0, 1, 200)], later, shard_rows=20)


def test_ids_find_their_range_as_numbers_or_as_bytes() -> None:
    assert find_id_ranges(["7", "10", "100", "x", "-3"], [9, 99]) == [0, 1, 2, 2, 0]
    large = [str(-(1 << 63)), "1234567890123456789", str((1 << 64) - 1), str(1 << 64), str(-(1 << 63) - 1)]
    assert find_id_ranges(large, [0, 2 * 10**18, None]) == [0, 1, 2, 3, 3]
    assert find_id_ranges(["7", "10", "9", "Z", "é"], ["10", "9", None]) == [1, 0, 1, 2, 2]
