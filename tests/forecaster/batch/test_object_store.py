"""A batch in an object store that speaks the protocol of S3 over HTTP: a server of moto on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forecaster.batch import list_nights, read_archive
from forecaster.batch.actuals import read_actuals
from forecaster.batch.job import BatchJob, run_batch
from forecaster.batch.manifest import FOLDER
from forecaster.batch.scores import score_archive
from forecaster.batch.shard import identify_model
from forecaster.batch.stores import Store
from forecaster.errors import ForecasterError, ManifestMismatch, SourceNotFound, SourceUnavailable
from tests.forecaster.batch.conftest import STEPS, make_rows, read_digests, shuffle_rows, write_files
from tests.forecaster.batch.test_covariates import FUTURE, HISTORIES, STATIC, read_forecasts
from tests.forecaster.batch.test_killed_batch import SHARDS, build_command
from tests.optional_packages import import_optional
from tests.system.processes import start_process, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore"),  # of moto, botocore and s3fs
]
BUCKET = "lake"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The URL of a server, and the environment in which s3fs finds it."""
    server_module = import_optional("moto.server")
    import_optional("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in variables.items():
            patched.setenv(name, value)
        yield variables["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def bucket(endpoint: str) -> Iterator[Any]:
    """A file system with an empty bucket."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir(BUCKET)
    yield files
    files.invalidate_cache()
    files.rm(BUCKET, recursive=True)


def upload(bucket: Any, folder: Path, name: str) -> str:
    """Copies the files of a folder into the bucket; returns their URL."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.pipe_file(f"{BUCKET}/{name}/{path.relative_to(folder)}", path.read_bytes())
    return f"s3://{BUCKET}/{name}"


def download_digests(bucket: Any, name: str) -> dict[str, bytes]:
    """Returns the bytes of every Parquet file below a folder of the bucket, by its relative name."""
    bucket.invalidate_cache()
    root = f"{BUCKET}/{name}/"
    return {
        path.removeprefix(root): bucket.cat_file(path)
        for path in sorted(bucket.find(root))
        if path.endswith(".parquet")
    }


@pytest.fixture
def stored_job(job: BatchJob, bucket: Any, tmp_path: Path) -> BatchJob:
    """A batch with a shuffle and a reject in the bucket, whose result on this machine is in the folder `expected`."""
    write_files(tmp_path / "input", {"day=1/a.parquet": shuffle_rows(make_rows(4 * SHARDS))})
    write_files(tmp_path / "input", {"day=2/b.parquet": make_rows(1, steps=2, first=900)})
    identity = identify_model(job.bundle, version=None, freq=None, season=None)
    job = replace(job, model=identity.model, shard_rows=4 * STEPS + 1)
    report = run_batch(replace(job, output=str(tmp_path / "expected")))
    assert (report.shards, report.rejected) == (SHARDS, 1)
    return replace(job, source=upload(bucket, tmp_path / "input", "input"), output=f"s3://{BUCKET}/output")


def test_a_batch_in_the_store_has_the_bytes_of_one_on_this_machine(
    stored_job: BatchJob, bucket: Any, tmp_path: Path
) -> None:
    report = run_batch(replace(stored_job, workers=2))
    expected = read_digests(tmp_path / "expected")
    assert report.is_complete
    assert download_digests(bucket, "output") == expected
    assert not bucket.exists(f"{BUCKET}/output/_shuffle")
    assert run_batch(stored_job).computed == 0
    assert [night.as_of for night in list_nights(stored_job.output)] == [stored_job.as_of]
    archive = read_archive(stored_job.output, as_of=stored_job.as_of)
    order = [("unique_id", "ascending"), ("step", "ascending")]
    assert archive.sort_by(order).equals(read_archive(str(tmp_path / "expected")).sort_by(order))

    actuals = archive.select(["unique_id", "ds"]).append_column("y", pa.array(np.ones(archive.num_rows)))
    write_files(tmp_path / "actuals", {"a.parquet": actuals})
    place = upload(bucket, tmp_path / "actuals", "actuals")
    scores = score_archive(stored_job.output, read_actuals(place, stored_job.output), by=("step",))
    assert scores.column("scored").to_pylist() == [4 * SHARDS] * stored_job.horizon

    bucket.rm(f"{BUCKET}/output/as_of=2026-01-31/part-00003.parquet")
    bucket.pipe_file(f"{BUCKET}/output/as_of=2026-01-31/part-00004.parquet", b"PAR1")
    assert run_batch(stored_job).computed == 2
    assert download_digests(bucket, "output") == expected
    with pytest.raises(ManifestMismatch, match="horizon"):
        run_batch(replace(stored_job, horizon=4))


def test_a_batch_killed_twice_continues_in_the_store(stored_job: BatchJob, bucket: Any, tmp_path: Path) -> None:
    records = f"{BUCKET}/output/{FOLDER}/as_of=2026-01-31/shards"

    def count_finished() -> int:
        bucket.invalidate_cache()
        return len(bucket.find(records))

    command = build_command(stored_job, workers=1)
    for shards in (1, SHARDS // 2):
        with start_process(command, tmp_path, **{name: os.environ[name] for name in os.environ}) as process:
            wait_until(lambda count=shards: process.poll() is not None or count_finished() >= count, pause=0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait(20) == -signal.SIGKILL, (tmp_path / "process.log").read_text()
    finished = count_finished()
    assert 0 < finished < SHARDS
    assert run_batch(stored_job).computed == SHARDS - finished
    assert download_digests(bucket, "output") == read_digests(tmp_path / "expected")


def test_covariates_in_the_store_are_read_by_shard(job: BatchJob, bucket: Any, tmp_path: Path) -> None:
    from forecaster.bundle.artifact import save_bundle
    from tests.forecaster.prediction.test_covariates import make_model

    save_bundle(make_model("rollout", calendar=()), tmp_path / "bundle", card="# covariates")
    write_files(tmp_path / "input", {"a.parquet": HISTORIES})
    write_files(tmp_path / "future", {"a.parquet": FUTURE}, row_group_size=5)
    (tmp_path / "static").mkdir()
    STATIC.to_pandas().to_csv(tmp_path / "static" / "static.csv", index=False)
    identity = identify_model(tmp_path / "bundle", version=None, freq=None, season=None)
    job = replace(job, bundle=tmp_path / "bundle", model=identity.model)
    names = ("source", "future", "static")
    folders = [tmp_path / name for name in ("input", "future", "static")]
    run_batch(replace(job, **dict(zip(names, map(str, folders), strict=True))))
    places = {name: upload(bucket, folder, folder.name) for name, folder in zip(names, folders, strict=True)}
    stored = replace(job, **places, output=f"s3://{BUCKET}/output", workers=2)
    assert run_batch(stored).is_complete
    [path] = {name.split("/")[0] for name in download_digests(bucket, "output")} - {"_rejects"}
    bucket.get(f"{BUCKET}/output/{path}", str(tmp_path / "copy" / path), recursive=True)
    np.testing.assert_array_equal(read_forecasts(str(tmp_path / "copy")), read_forecasts(job.output))


def test_more_objects_than_a_page_of_a_listing_are_found(bucket: Any) -> None:
    store = Store(f"s3://{BUCKET}/many")
    for number in range(1005):
        bucket.pipe_file(f"{BUCKET}/many/{number:04d}.parquet", b"x")
    assert list(store.list_files()) == [f"{number:04d}.parquet" for number in range(1005)]
    store.remove_folder("")
    assert store.list_files() == {}


def test_a_large_file_is_written_whole_and_read_at_random(bucket: Any) -> None:
    """s3fs uploads files of more than 100 MB in parts."""
    store, content = Store(f"s3://{BUCKET}/large"), os.urandom(1 << 20) * 110
    stored = store.write_bytes("a.bin", content)
    assert store.compute_digest("a.bin") == stored
    with store.open_file("a.bin") as file:
        file.seek(len(content) - 1000)
        assert file.read() == content[-1000:]


def test_a_missing_bucket_and_a_store_that_does_not_respond_are_named(
    stored_job: BatchJob, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    for changed in (
        replace(stored_job, source="s3://nowhere/input"),
        replace(stored_job, output="s3://nowhere/output"),
    ):
        with pytest.raises(ForecasterError, match=r"s3://nowhere/"):
            run_batch(changed)
    with pytest.raises(SourceNotFound, match="found none"):
        Store(stored_job.output).read_bytes("nothing")
    with pytest.raises(SourceNotFound, match="Expected a bucket for s3://nowhere/output/a; found none"):
        Store("s3://nowhere/output").write_bytes("a", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(SourceUnavailable, match="the store failed with"):
        run_batch(stored_job)
    s3fs.S3FileSystem.clear_instance_cache()


def test_an_object_that_another_machine_replaces_is_read_anew(bucket: Any, endpoint: str) -> None:
    import boto3

    store, other = Store(f"s3://{BUCKET}/shared"), boto3.client("s3")
    store.write_bytes("a", b"first")
    assert store.list_files() == {"a": 5}
    other.put_object(Bucket=BUCKET, Key="shared/a", Body=b"longer than that")
    assert store.compute_digest("a").size == 16
    with store.open_file("a") as file:
        other.put_object(Bucket=BUCKET, Key="shared/a", Body=b"changed while it is read")
        with pytest.raises(SourceUnavailable, match=r"s3://lake/shared/a; the store failed with FileExpired"):
            file.read()


def test_an_input_is_compared_by_its_contents_in_the_store(stored_job: BatchJob, bucket: Any) -> None:
    run_batch(stored_job)
    sink = pa.BufferOutputStream()
    pq.write_table(make_rows(1, steps=2, first=901), sink)
    bucket.pipe_file(f"{BUCKET}/input/day=2/b.parquet", sink.getvalue().to_pybytes())
    with pytest.raises(ManifestMismatch, match="Expected the input"):
        run_batch(stored_job)
