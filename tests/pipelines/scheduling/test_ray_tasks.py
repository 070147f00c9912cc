"""Steps as tasks on a Ray cluster: what the adapter does with Ray (a stub), and a batch on two nodes one of which dies."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from forecaster.batch.job import BatchJob, run_batch
from forecaster.batch.manifest import BatchModel, ShardRecord
from forecaster.batch.workers import run_in_processes
from forecaster.bundle import artifact
from forecaster.errors import BadSpec, ClusterError, InputError, MissingPackage
from pipelines.scheduling.ray_tasks import RayTasks, open_cluster, open_runner
from tests.factories import make_fitted_model, make_spec
from tests.forecaster.batch.conftest import STEPS, make_rows, read_digests, shuffle_rows, write_files
from tests.optional_packages import import_optional
from tests.system.processes import wait_until


class RayError(Exception):
    """As in Ray: the root of its exceptions."""


class RayTaskError(RayError):
    """As in Ray: wraps what a task raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"a page of advice about {cause}")
        self.cause = cause


class StubRay:
    """Calls each task when its result is fetched; the last submitted one finishes first."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self) -> None:
        self.is_connected, self.options, self.most_pending = False, dict[str, Any](), 0
        self.cancelled: list[Any] = []
        self.task_options: dict[str, Any] = {}

    def is_initialized(self) -> bool:
        return self.is_connected

    def init(self, **options: Any) -> None:
        if options["address"] == "nowhere:6379":
            raise ConnectionError("Failed to connect to the cluster.\nA page of advice")
        self.is_connected, self.options = True, options

    def shutdown(self) -> None:
        self.is_connected = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.task_options = options
        return lambda function: SimpleNamespace(remote=lambda *arguments: partial(function, *arguments))

    def wait(self, pending: list[Any], *, num_returns: int) -> tuple[list[Any], list[Any]]:
        self.most_pending = max(self.most_pending, len(pending))
        return pending[-num_returns:], pending[:-num_returns]

    def get(self, reference: Callable[[], Any]) -> Any:
        try:
            return reference()
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError(error) from error

    def cancel(self, reference: Any, *, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubRay:
    stub = StubRay()
    monkeypatch.setitem(sys.modules, "ray", stub)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return stub


def square(step: int) -> int:
    if step == 7:
        raise BadSpec("seven", where="step")
    if step == 8:
        raise RayError("The worker died.\nA page of advice")
    return step * step


def test_steps_are_submitted_as_workers_become_free_and_yielded_as_they_finish(stub: StubRay) -> None:
    with open_cluster(workers=None) as tasks:
        assert tasks.workers == 3, "one for each CPU of the cluster"
        assert list(tasks(square, range(6))) == [4, 9, 16, 25, 1, 0]
    assert stub.most_pending == 3
    assert stub.task_options == {"num_cpus": 1, "max_retries": 3, "retry_exceptions": False}
    assert stub.options["address"] == "local"
    assert not stub.is_connected


def test_an_error_of_a_step_is_raised_as_it_is_and_ends_the_others(stub: StubRay) -> None:
    with pytest.raises(BadSpec, match=r"^seven$") as raised:
        list(RayTasks(3)(square, range(5, 20)))
    assert raised.value.where == "step"
    assert len(stub.cancelled) == 3, "two that were waiting, and the one that took the free worker"


def test_a_worker_lost_on_every_attempt_is_an_error_that_says_how_to_continue(stub: StubRay) -> None:
    with pytest.raises(ClusterError, match=r"within 4 attempts.*: RayError: The worker died\. Finished steps are kept"):
        list(RayTasks(1)(square, [8]))


def test_a_cluster_of_the_program_is_used_and_left_connected(stub: StubRay) -> None:
    stub.is_connected = True
    with open_runner("ray", workers=2) as tasks:
        assert tasks == RayTasks(2)
    assert stub.is_connected
    assert stub.options == {}


def test_a_cluster_that_does_not_respond_and_a_missing_package_are_named(
    stub: StubRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:6379")
    with pytest.raises(ClusterError, match=r"nowhere:6379; ConnectionError: Failed to connect to the cluster\. Check"):
        open_cluster(workers=1).__enter__()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackage, match=r"recurrent-forecaster\[ray\]"):
        open_cluster(workers=1).__enter__()
    with open_runner("local", workers=1) as tasks:
        assert tasks is None


@pytest.fixture
def job(tmp_path: Path) -> BatchJob:
    """A batch of 12 shards with a shuffle."""
    bundle = tmp_path / "bundle"
    artifact.save_bundle(make_fitted_model(make_spec()), bundle, card="# small")
    write_files(tmp_path / "input", {"a.parquet": shuffle_rows(make_rows(48))})
    return BatchJob(
        bundle=bundle,
        model=BatchModel(name="small", version="small/1", digest=artifact.compute_bundle_digest(bundle)),
        source=str(tmp_path / "input"),
        output=str(tmp_path / "output"),
        as_of="2026-01-31",
        horizon=5,
        shard_rows=4 * STEPS,
    )


def test_a_batch_on_the_cluster_has_the_bytes_and_the_manifest_of_processes(
    stub: StubRay, job: BatchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_batch(replace(job, output=str(tmp_path / "expected")))
    monkeypatch.chdir(tmp_path)
    report = run_batch(replace(job, source="input", output="output", bundle=Path("bundle")), run_steps=RayTasks(2))
    assert (report.shards, report.computed, report.is_complete) == (12, 12, True)
    assert read_digests(tmp_path / "output") == read_digests(tmp_path / "expected")
    manifest = "_forecaster/as_of=2026-01-31/manifest.json"
    assert (tmp_path / "output" / manifest).read_bytes() == (tmp_path / "expected" / manifest).read_bytes()
    assert run_batch(job).computed == 0, "processes continue what tasks have begun"


def test_files_that_a_worker_wrote_on_its_own_disk_are_missed_before_the_batch_is_listed(
    job: BatchJob, tmp_path: Path
) -> None:
    def run_elsewhere(function: Callable[[int], Any], steps: Any) -> Iterator[Any]:
        for record in run_in_processes(function, steps, workers=1):
            for path in (tmp_path / "output").rglob("*.arrow"):
                path.unlink()
            yield record

    with pytest.raises(InputError, match=r"rows-00000\.arrow .*this process does not see it"):
        run_batch(job, run_steps=run_elsewhere)
    try:
        with pytest.raises(InputError, match="found memory://"):
            run_batch(replace(job, output="memory://elsewhere/output"), run_steps=run_elsewhere)
    finally:
        fsspec.filesystem("memory").rm("/elsewhere", recursive=True)


def call_slowly(function: Callable[[Any], Any], step: Any) -> Any:
    time.sleep(0.5)
    return function(step)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of Ray
def test_a_node_that_dies_in_the_middle_of_a_batch_changes_no_byte(job: BatchJob, tmp_path: Path) -> None:
    ray = import_optional("ray")
    from ray.cluster_utils import Cluster

    run_batch(replace(job, output=str(tmp_path / "expected")))
    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)

        def lose_a_node(function: Callable[[Any], Any], steps: Any) -> Iterator[Any]:
            for number, result in enumerate(RayTasks(2)(partial(call_slowly, function), steps), start=1):
                if number == 2 and isinstance(result, ShardRecord):  # both nodes have a task
                    cluster.remove_node(second, allow_graceful=False)
                yield result

        report = run_batch(job, run_steps=lose_a_node)
        wait_until(lambda: [entry["Alive"] for entry in ray.nodes()].count(True) == 1)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert report.is_complete
    assert read_digests(tmp_path / "output") == read_digests(tmp_path / "expected")
