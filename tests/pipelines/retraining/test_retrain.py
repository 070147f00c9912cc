"""A retraining asked for twice is one version and one verdict; and whether one is called for."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.registry.registry import CHAMPION, Registry, connect
from forecaster.storage.failpoints import Broken
from pipelines.cli import main
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import champion_of, promote, recorded
from pipelines.promotion.rollback import roll_back
from pipelines.retraining.retrain import alone, retrain_once
from pipelines.retraining.triggers import need
from pipelines.settings import Root
from pipelines.sources import Data, read
from pipelines.training.retrain_key import TAG, code_version, key_of
from tests.pipelines.conftest import BAD, noise, small
from tests.system.processes import write_config

EASY = Policy(margin=0.0, confidence=0.51, group_room=10.0)
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's


def numbers(root: Root) -> list[str]:
    return [one.number for one in Registry(root.store).versions("small")]


def champion(root: Root) -> str:
    return Registry(root.store).resolve("small", CHAMPION).number


def test_the_same_retraining_is_one_version_with_one_verdict(fresh: Root, data: Data) -> None:
    first = retrain_once(data, small(), fresh)
    again = retrain_once(data, small(), fresh, trigger="schedule")
    assert (first.before, again.before) == (False, True)
    assert first.key == again.key
    assert again.done.version == first.done.version
    assert again.done.verdict.promote
    assert [one.reason for one in again.done.verdict.checks] == [one.reason for one in first.done.verdict.checks]
    assert again.done.trained.scores == first.done.trained.scores
    assert again.done.champion is not None
    assert (numbers(fresh), champion(fresh)) == (["1"], "1")
    worse = retrain_once(data, small(learning_rate=BAD), fresh)
    refused = retrain_once(data, small(learning_rate=BAD), fresh)
    assert not worse.done.verdict.promote
    assert (refused.before, refused.done.verdict.reasons) == (True, worse.done.verdict.reasons)
    assert (numbers(fresh), champion(fresh)) == (["1", "2"], "1")
    client = connect(fresh.store)
    assert client.get_run(first.done.trained.run_id).data.tags[TAG] == first.key
    assert client.get_model_version("small", "1").tags[TAG] == first.key
    assert len(AuditLog(fresh.audit).read().lines) == 1


def test_a_rollback_is_not_undone_by_asking_again(fresh: Root, data: Data) -> None:
    retrain_once(data, small(learning_rate=BAD), fresh)
    promote("small", fresh, number="1", force=True, reason="for this test")
    better = retrain_once(data, small(), fresh, policy=EASY)
    assert (better.done.verdict.promote, champion(fresh)) == (True, "2")
    roll_back("small", fresh)
    assert retrain_once(data, small(), fresh, policy=EASY).done.verdict.promote, "as it was said then"
    assert champion(fresh) == "1"
    elsewhere = Root(fresh.path.with_name("elsewhere"), fresh.store)  # another machine: the same registry, nothing else
    assert retrain_once(data, small(), elsewhere, policy=EASY).before
    assert (numbers(fresh), champion(fresh)) == (["1", "2"], "1")


def test_a_machine_without_any_files_is_answered_by_the_registry(fresh: Root, data: Data) -> None:
    first = retrain_once(data, small(), fresh)
    other = Root(fresh.path.with_name("other"), fresh.store)
    again = retrain_once(data, small(), other)
    assert again.before
    assert again.done.verdict.reasons == first.done.verdict.reasons
    assert not (other.path / "checkpoints").exists()
    found = recorded(first.done.version, other)
    assert found is not None
    assert found.against is None


def test_a_verdict_against_a_champion_that_is_no_more_is_given_anew(
    fresh: Root, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrain_once(data, small(learning_rate=BAD), fresh)
    retrain_once(data, small(learning_rate=BAD, seed=1), fresh)
    promote("small", fresh, number="1", force=True, reason="for this test")
    with monkeypatch.context() as patched:
        patched.setenv("FORECASTER_TEST", "1")
        patched.setenv("FORECASTER_FAILPOINTS", "judge.recorded=raise")
        with pytest.raises(Broken):
            retrain_once(data, small(), fresh, policy=EASY)
    promote("small", fresh, number="2", force=True, reason="for this test")
    done = retrain_once(data, small(), fresh, policy=EASY)
    assert not done.before
    assert (numbers(fresh), champion(fresh)) == (["1", "2", "3"], "3")
    assert recorded(done.done.version, fresh).against == "2"  # type: ignore[union-attr]


def test_asked_again_on_purpose_it_is_trained_again(fresh: Root, data: Data) -> None:
    retrain_once(data, small(), fresh)
    once_more = retrain_once(data, small(), fresh, again=True)
    assert (once_more.before, once_more.done.verdict.promote) == (False, False)
    assert numbers(fresh) == ["1", "2"]
    latest = retrain_once(data, small(), fresh)
    assert (latest.before, latest.done.version.number) == (True, "2")


def test_of_two_that_ask_at_once_one_waits_and_the_lock_is_gone_after_both(tmp_path: Path) -> None:
    lock, order, entered = tmp_path / "a" / "key.lock", [], threading.Event()

    def second() -> None:
        entered.wait()
        with alone(lock):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with alone(lock):
        entered.set()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not lock.exists()


def test_another_gate_seed_window_or_again_is_another_retraining(fresh: Root, data: Data) -> None:
    panel, policy = read(data), Policy()
    key = key_of(panel, small(), policy, test_windows=1, warm=False)
    others = {
        key_of(panel, small(seed=1), policy, test_windows=1, warm=False),
        key_of(panel, small(), Policy(margin=0.1), test_windows=1, warm=False),
        key_of(panel, small(), policy, test_windows=2, warm=False),
        key_of(panel, small(), policy, test_windows=1, warm=True),
        key_of(read(data._replace(cutoff="2026-01-02T12:00")), small(), policy, test_windows=1, warm=False),
    }
    assert len({key, *others}) == 6
    assert key_of(read(data), small(), policy, test_windows=1, warm=False) == key
    assert code_version().startswith("0.")


def test_what_is_known_further_ahead_is_not_of_the_key(tmp_path: Path) -> None:
    """A cutoff keeps the data still while plans for the time after it grow."""
    frame = noise(3, steps=60).assign(promo=1.0)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame[frame["ds"] < "2026-01-03"].to_csv(tmp_path / "b.csv", index=False)
    keys = {
        key_of(
            read(Data(str(tmp_path / name), freq="h", covariates=("promo",), cutoff="2026-01-02")),
            small(),
            Policy(),
            test_windows=1,
            warm=False,
        )
        for name in ("a.csv", "b.csv")
    }
    assert len(keys) == 1


# Whether one is called for


def test_nothing_calls_for_a_retraining_until_new_data_or_a_watch_does(fresh: Root, data: Data, tmp_path: Path) -> None:
    first = need("small", data, fresh)
    assert "no champion" in first.reasons[0]
    retrain_once(data, small(), fresh)
    assert not need("small", data, fresh)
    assert "0 steps" in need("small", data, fresh).found
    path = tmp_path / "later.csv"
    noise(steps=63).to_csv(path, index=False)
    later = Data(str(path))
    assert not need("small", later, fresh), "three steps, of four"
    assert need("small", later, fresh, min_new=3).reasons[0].startswith("3 steps came")
    assert need("small", later._replace(cutoff="2026-01-03T12:00"), fresh, min_new=3).reasons == ()
    noise(steps=64).to_csv(path, index=False)
    assert need("small", later, fresh)

    def watch() -> Sequence[str]:
        return ["the 80 % intervals held 31 % of the last week"]

    watched = need("small", data, fresh, watches=[list, watch, watch])
    assert watched.reasons == (watch()[0], watch()[0]), "every watch is asked"


def test_data_of_another_frequency_call_for_a_retraining(fresh: Root, data: Data, tmp_path: Path) -> None:
    retrain_once(data, small(), fresh)
    frame = noise(2, steps=60)
    frame["ds"] = np.tile(pd.date_range("2026-01-01", periods=60, freq="D"), 2)
    frame.to_csv(tmp_path / "days.csv", index=False)
    assert "cannot be compared" in need("small", Data(str(tmp_path / "days.csv")), fresh).reasons[0]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    return int(left.value.code or 0)


def test_the_command_answers_with_the_exit_code_of_then(
    fresh: Root, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (write_config(tmp_path / f"{rate}.yaml", small(learning_rate=rate)) for rate in (1e-3, BAD))
    where = ("--root", fresh.path)
    assert [run("retrain", data.source, "--config", good, *where) for _ in range(2)] == [0, 0]
    assert "done before" in capsys.readouterr().out
    assert [run("retrain", data.source, "--config", bad, *where) for _ in range(2)] == [3, 3]
    assert numbers(fresh) == ["1", "2"]
    shutil.rmtree(fresh.bundles)
    capsys.readouterr()
    assert run("retrain", data.source, "--config", bad, "--if-needed", *where) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert run("retrain", data.source, "--config", good, "--if-needed", "--min-new", "0", *where) == 2
    assert champion_of(Registry(fresh.store), "small") is not None
