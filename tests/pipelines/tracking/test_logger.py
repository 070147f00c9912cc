"""The logger of a run sends metrics in batches, and a failing store does not end a training."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from pipelines.tracking.logger import RunLogger, flatten_params

pytestmark = pytest.mark.integration


class StubTrackingClient:
    """A client that records the sizes of batches, and fails while `failing` is set."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.params: dict[str, str] = {}
        self.points: list[tuple[str, float, int]] = []
        self.tags: dict[str, str] = {}
        self.status: str | None = None
        self.failing = False

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> None:
        if self.failing:
            raise ConnectionError("no route to host")
        self.tags |= {tag.key: tag.value for tag in tags}
        if not (metrics or params):
            return
        self.batches.append(len(metrics) + len(params))
        self.points += [(metric.key, metric.value, metric.step) for metric in metrics]
        self.params |= {param.key: param.value for param in params}

    def set_tag(self, run_id: str, key: str, value: Any) -> None:
        self.tags[key] = value

    def set_terminated(self, run_id: str, status: str | None = None) -> None:
        self.status = status


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_metrics_are_sent_in_batches_of_at_most_a_thousand() -> None:
    stub = StubTrackingClient()
    logger = RunLogger(stub, "run", interval_s=60.0)
    for step in range(2500):
        logger.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    assert stub.batches == []
    logger.close("FINISHED")
    assert stub.batches == [1000, 1000, 500]
    assert [step for _, _, step in stub.points] == list(range(2500))
    assert stub.status == "FINISHED"


def test_flush_sends_asynchronously_and_a_timer_sends_too() -> None:
    stub = StubTrackingClient()
    logger = RunLogger(stub, "run", interval_s=60.0)
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, 1)
    logger.flush()
    wait_until(lambda: stub.batches == [2])
    logger.close("FINISHED")

    stub = StubTrackingClient()
    logger = RunLogger(stub, "run", interval_s=0.05)
    logger.log_metrics({"train/loss": 1.0}, 1)
    wait_until(lambda: stub.batches == [1])
    logger.close("FINISHED")


def test_the_end_of_a_lightning_fit_does_not_end_the_run() -> None:
    stub = StubTrackingClient()
    logger = RunLogger(stub, "run")
    logger.finalize("success")
    assert stub.status is None
    logger.close("FAILED")
    logger.close("FINISHED")
    assert stub.status == "FAILED"


def test_parameters_are_flat_and_within_the_mlflow_limit() -> None:
    params = flatten_params({"network": {"hidden": 64, "cell": "gru"}, "text": "x" * 7000, "none": None})
    assert params == {"network.hidden": "64", "network.cell": "gru", "text": "x" * 6000, "none": "None"}


def test_a_non_finite_value_is_logged_and_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    stub = StubTrackingClient()
    logger = RunLogger(stub, "run")
    for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0]):
        logger.log_metrics({"train/loss": value}, step)
    logger.close("FINISHED")
    assert stub.points == [("train/loss", 1.0, 0), ("train/loss", 2.0, 3)]
    assert stub.tags == {"nonfinite": "train/loss = nan at step 1"}
    assert caplog.messages == ["A metric is not finite and is not recorded: train/loss = nan at step 1."]


def test_a_temporary_store_failure_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    stub = StubTrackingClient()
    stub.failing = True
    logger = RunLogger(stub, "run", interval_s=0.01)
    logger.log_hyperparams({"a": 1})
    logger.log_tag("state", "old")
    for step in range(5):
        logger.log_metrics({"train/loss": 1.0}, step)
    wait_until(lambda: caplog.messages)
    logger.log_tag("state", "new")
    stub.failing = False
    wait_until(lambda: len(stub.points) == 5)
    logger.close("FINISHED")
    assert [step for _, _, step in stub.points] == list(range(5))
    assert (stub.params, stub.tags) == ({"a": "1"}, {"state": "new"})
    assert len(caplog.messages) == 2  # one for the failure, one for the recovery


def test_a_permanent_store_failure_drops_and_counts_the_oldest_metrics(caplog: pytest.LogCaptureFixture) -> None:
    stub = StubTrackingClient()
    stub.failing = True
    logger = RunLogger(stub, "run", interval_s=60.0, capacity=10)
    for step in range(30):
        logger.log_metrics({"train/loss": 1.0}, step)
    logger.flush()
    wait_until(lambda: caplog.messages)
    logger.close("FINISHED")
    assert caplog.messages[-1] == "Run run is incomplete; could not be recorded: train/loss."
    assert stub.tags == {"incomplete": "train/loss"}
    assert stub.status == "FINISHED"


def test_a_background_task_runs_in_parallel_and_its_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    stub, done = StubTrackingClient(), list[int]()
    logger = RunLogger(stub, "run", interval_s=60.0)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.submit("the first", lambda: done.append(1))
    wait_until(lambda: done == [1])
    assert stub.batches == [], "metrics wait for their batch"
    logger.submit("the second", lambda: 1 // 0)
    logger.submit("the third", lambda: done.append(3))
    logger.log_tag("a", "b")
    logger.close("FINISHED")
    assert done == [1, 3]
    assert stub.tags == {"a": "b", "incomplete": "the second"}
    assert [step for _, _, step in stub.points] == [1]
    assert caplog.messages == [
        "Could not record the second yet: integer division or modulo by zero",
        "Run run is incomplete; could not be recorded: the second.",
    ]


def test_a_failed_task_is_repeated_until_the_store_accepts_it(caplog: pytest.LogCaptureFixture) -> None:
    stub, attempts = StubTrackingClient(), list[str]()

    def upload(name: str, failures: int) -> None:
        attempts.append(name)
        if attempts.count(name) <= failures:
            raise ConnectionError("no route to host")

    logger = RunLogger(stub, "run", interval_s=0.01)
    logger.submit("plots/a.png", lambda: upload("a", failures=2))
    wait_until(lambda: attempts.count("a") == 3)
    logger.log_metrics({"train/loss": 1.0}, 1)
    wait_until(lambda: stub.points)
    logger.close("FINISHED")
    assert attempts == ["a"] * 3
    assert (stub.tags, stub.status) == ({}, "FINISHED")
    assert caplog.messages == ["Could not record plots/a.png yet: no route to host"]
    logger = RunLogger(stub, "run", interval_s=60.0)
    logger.submit("plots/b.png", lambda: upload("b", failures=1))
    logger.close("FINISHED")
    assert attempts[3:] == ["b"] * 2, "the end of the run does not wait for the next attempt"
    assert not stub.tags


def test_a_run_ends_though_its_last_tag_fails_and_names_what_was_being_sent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HangingClient(StubTrackingClient):
        def log_batch(self, *_: Any, **__: Any) -> None:
            released.wait(10.0)

        def set_tag(self, run_id: str, key: str, value: Any) -> None:
            raise ConnectionError("no route to host")

    stub, released = HangingClient(), threading.Event()
    monkeypatch.setattr("pipelines.tracking.logger._CLOSE_TIMEOUT_S", 0.1)
    logger = RunLogger(stub, "run", interval_s=60.0)
    logger.log_metrics({"train/loss": 1.0})
    logger.close("FINISHED")
    released.set()
    assert stub.status == "FINISHED"
    assert caplog.messages == [
        "Run run is incomplete; could not be recorded: train/loss.",
        "Could not record the tag 'incomplete' of run run: no route to host",
    ]


def test_a_value_that_mlflow_rejects_is_named_as_lost() -> None:
    class RejectingClient(StubTrackingClient):
        def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
            if any(metric.key == "what?" for metric in metrics):
                raise MlflowException("an invalid name", error_code=INVALID_PARAMETER_VALUE)
            super().log_batch(run_id, metrics, params, tags)

    stub = RejectingClient()
    logger = RunLogger(stub, "run", interval_s=60.0)
    logger.log_metrics({"a": 1.0, "what?": 2.0})
    logger.close("FINISHED")
    assert stub.points == [("a", 1.0, 0)]
    assert stub.tags == {"incomplete": "what?"}
