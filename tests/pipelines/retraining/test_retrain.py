"""A repeated retraining gives one version and one verdict; and the triggers of a retraining."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.data.frames.panel import to_panel
from forecaster.errors import RefusedByGate
from forecaster.registry.registry import CHAMPION, Registry, create_client
from forecaster.series import Panel
from forecaster.storage.failpoints import FailPointError
from forecaster.training import selection
from pipelines.cli import main
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import find_champion, load_verdict, promote_version
from pipelines.promotion.rollback import roll_back
from pipelines.retraining.retrain import RetrainOptions, hold_retrain_lock, retrain
from pipelines.retraining.triggers import check_triggers
from pipelines.settings import Root
from pipelines.sources import DataSource, panels, read_panel
from pipelines.training.retrain_key import RETRAIN_KEY_TAG, compute_code_version, compute_retrain_key
from tests.pipelines.conftest import BAD_LEARNING_RATE, LENIENT_POLICY, make_noise_frame, make_small_spec
from tests.system.processes import write_config

YEAR_2226 = datetime(2226, 6, 1, tzinfo=UTC)
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]  # raised by Lightning


def version_numbers(root: Root) -> list[str]:
    return [version.number for version in Registry(root.store_uri).list_versions("small")]


def champion_number(root: Root) -> str:
    return Registry(root.store_uri).resolve("small", CHAMPION).number


def test_repeating_a_retraining_gives_one_version_and_one_verdict(fresh_root: Root, noise_data: DataSource) -> None:
    first = retrain(noise_data, make_small_spec(), fresh_root)
    again = retrain(noise_data, make_small_spec(), fresh_root, RetrainOptions(trigger="schedule"))
    assert (first.already_done, again.already_done) == (False, True)
    assert first.key == again.key
    assert again.version == first.version
    assert again.verdict.should_promote
    assert [check.reason for check in again.verdict.checks] == [check.reason for check in first.verdict.checks]
    assert again.training.scores == first.training.scores
    assert again.champion is not None
    assert (version_numbers(fresh_root), champion_number(fresh_root)) == (["1"], "1")
    worse = retrain(noise_data, make_small_spec(learning_rate=BAD_LEARNING_RATE), fresh_root)
    repeated = retrain(noise_data, make_small_spec(learning_rate=BAD_LEARNING_RATE), fresh_root)
    assert not worse.verdict.should_promote
    assert (repeated.already_done, repeated.verdict.reasons) == (True, worse.verdict.reasons)
    assert (version_numbers(fresh_root), champion_number(fresh_root)) == (["1", "2"], "1")
    client = create_client(fresh_root.store_uri)
    assert client.get_run(first.training.run_id).data.tags[RETRAIN_KEY_TAG] == first.key
    assert client.get_model_version("small", "1").tags[RETRAIN_KEY_TAG] == first.key
    assert len(AuditLog(fresh_root.audit_log).read_entries().entries) == 1


def test_repeating_a_retraining_does_not_undo_a_rollback(fresh_root: Root, noise_data: DataSource) -> None:
    retrain(noise_data, make_small_spec(learning_rate=BAD_LEARNING_RATE), fresh_root)
    promote_version("small", fresh_root, version_number="1", force=True, reason="for this test")
    better = retrain(noise_data, make_small_spec(), fresh_root, RetrainOptions(policy=LENIENT_POLICY))
    assert (better.verdict.should_promote, champion_number(fresh_root)) == (True, "2")
    assert better.champion_version == better.version
    roll_back("small", fresh_root)
    again = retrain(noise_data, make_small_spec(), fresh_root, RetrainOptions(policy=LENIENT_POLICY))
    assert again.verdict.should_promote, "the recorded verdict is returned"
    assert again.champion_version is not None
    assert (champion_number(fresh_root), again.champion_version.number) == ("1", "1")
    # Another machine shares the registry and nothing else.
    other_root = Root(fresh_root.path.with_name("other"), fresh_root.store_uri)
    assert retrain(noise_data, make_small_spec(), other_root, RetrainOptions(policy=LENIENT_POLICY)).already_done
    assert (version_numbers(fresh_root), champion_number(fresh_root)) == (["1", "2"], "1")


def test_a_machine_without_local_files_uses_the_registry(fresh_root: Root, noise_data: DataSource) -> None:
    first = retrain(noise_data, make_small_spec(), fresh_root)
    other_root = Root(fresh_root.path.with_name("other"), fresh_root.store_uri)
    again = retrain(noise_data, make_small_spec(), other_root)
    assert again.already_done
    assert again.verdict.reasons == first.verdict.reasons
    assert not (other_root.path / "checkpoints").exists()
    record = load_verdict(first.version, other_root)
    assert record is not None
    assert record.champion_number is None


def test_a_verdict_against_a_former_champion_is_recomputed(
    fresh_root: Root, noise_data: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrain(noise_data, make_small_spec(learning_rate=BAD_LEARNING_RATE), fresh_root)
    retrain(noise_data, make_small_spec(learning_rate=BAD_LEARNING_RATE, seed=1), fresh_root)
    promote_version("small", fresh_root, version_number="1", force=True, reason="for this test")
    with monkeypatch.context() as patch:
        patch.setenv("FORECASTER_TEST", "1")
        patch.setenv("FORECASTER_FAILPOINTS", "judge.recorded=raise")
        with pytest.raises(FailPointError):
            retrain(noise_data, make_small_spec(), fresh_root, RetrainOptions(policy=LENIENT_POLICY))
    promote_version("small", fresh_root, version_number="2", force=True, reason="for this test")
    retrained = retrain(noise_data, make_small_spec(), fresh_root, RetrainOptions(policy=LENIENT_POLICY))
    assert not retrained.already_done
    assert (version_numbers(fresh_root), champion_number(fresh_root)) == (["1", "2", "3"], "3")
    assert load_verdict(retrained.version, fresh_root).champion_number == "2"  # type: ignore[union-attr]


def test_retraining_with_the_again_option_trains_again(fresh_root: Root, noise_data: DataSource) -> None:
    retrain(noise_data, make_small_spec(), fresh_root)
    again = retrain(noise_data, make_small_spec(), fresh_root, RetrainOptions(force_retrain=True))
    assert (again.already_done, again.verdict.should_promote) == (False, False)
    assert (version_numbers(fresh_root), champion_number(fresh_root)) == (["1", "2"], "1"), (
        "an equal model is not better"
    )
    latest = retrain(noise_data, make_small_spec(), fresh_root)
    assert (latest.already_done, latest.version.number) == (True, "2")


def test_a_concurrent_retraining_waits_and_the_lock_is_removed(tmp_path: Path) -> None:
    lock, order, entered = tmp_path / "a" / "key.lock", [], threading.Event()

    def wait_and_append() -> None:
        entered.wait()
        with hold_retrain_lock(lock):
            order.append("second")

    thread = threading.Thread(target=wait_and_append)
    thread.start()
    with hold_retrain_lock(lock):
        entered.set()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not lock.exists()


def test_a_different_policy_seed_window_request_or_again_is_a_different_retraining(
    fresh_root: Root, noise_data: DataSource
) -> None:
    panel, policy = read_panel(noise_data), Policy()
    key = compute_retrain_key(panel, make_small_spec(), policy, test_windows=1, warm_start=False)
    others = {
        compute_retrain_key(panel, make_small_spec(seed=1), policy, test_windows=1, warm_start=False),
        compute_retrain_key(panel, make_small_spec(), Policy(margin=0.1), test_windows=1, warm_start=False),
        compute_retrain_key(panel, make_small_spec(), policy, test_windows=2, warm_start=False),
        compute_retrain_key(panel, make_small_spec(), policy, test_windows=1, warm_start=True),
        compute_retrain_key(
            read_panel(noise_data._replace(cutoff="2026-01-02T12:00")),
            make_small_spec(),
            policy,
            test_windows=1,
            warm_start=False,
        ),
        compute_retrain_key(  # the request counts, also without an incomplete period
            read_panel(noise_data._replace(drop_partial=True)),
            make_small_spec(),
            policy,
            test_windows=1,
            warm_start=False,
        ),
    }
    assert len({key, *others}) == 7
    assert (
        compute_retrain_key(read_panel(noise_data), make_small_spec(), policy, test_windows=1, warm_start=False) == key
    )
    assert compute_code_version().startswith("0.")


def test_known_future_covariates_are_not_part_of_the_key(tmp_path: Path) -> None:
    """With a cutoff, the key stays the same when covariates after the cutoff are added."""
    frame = make_noise_frame(3, steps=60).assign(promo=1.0)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame[frame["ds"] < "2026-01-03"].to_csv(tmp_path / "b.csv", index=False)
    keys = {
        compute_retrain_key(
            read_panel(DataSource(str(tmp_path / name), freq="h", covariates=("promo",), cutoff="2026-01-02")),
            make_small_spec(),
            Policy(),
            test_windows=1,
            warm_start=False,
        )
        for name in ("a.csv", "b.csv")
    }
    assert len(keys) == 1


# Triggers


def test_retraining_is_not_triggered_until_new_data_or_a_monitoring_finding(
    fresh_root: Root, noise_data: DataSource
) -> None:
    first = check_triggers("small", read_panel(noise_data), fresh_root)
    assert "no champion" in first.reasons[0]
    retrain(noise_data, make_small_spec(), fresh_root)
    assert not check_triggers("small", read_panel(noise_data), fresh_root)
    assert "0 new steps" in check_triggers("small", read_panel(noise_data), fresh_root).summary
    panel = to_panel(make_noise_frame(steps=63))
    assert not check_triggers("small", panel, fresh_root), "three of four steps"
    assert check_triggers("small", panel, fresh_root, min_new_steps=3).reasons[0].startswith("3 new steps")
    assert check_triggers("small", to_panel(make_noise_frame(steps=64)), fresh_root)

    def monitoring_check() -> Sequence[str]:
        return ["the 80 % intervals held 31 % of the last week"]

    result = check_triggers(
        "small", read_panel(noise_data), fresh_root, checks=[list, monitoring_check, monitoring_check]
    )
    assert result.reasons == (*monitoring_check(), *monitoring_check()), "every check runs"


def test_data_of_another_frequency_trigger_a_retraining_whose_model_is_not_comparable(
    fresh_root: Root, noise_data: DataSource, tmp_path: Path
) -> None:
    retrain(noise_data, make_small_spec(), fresh_root)
    frame = make_noise_frame(2, steps=60)
    frame["ds"] = np.tile(pd.date_range("2026-01-01", periods=60, freq="D"), 2)
    frame.to_csv(tmp_path / "days.csv", index=False)
    days = DataSource(str(tmp_path / "days.csv"))
    assert "cannot be compared" in check_triggers("small", read_panel(days), fresh_root).reasons[0]
    verdict = retrain(days, make_small_spec(), fresh_root).verdict
    assert "champion" in verdict.failed_checks
    assert "the data have the frequency 'D', the model 'h' (2 of 2 series)" in str(verdict)
    assert champion_number(fresh_root) == "1"


def test_a_champion_of_the_year_2226_is_prevented_noticed_and_replaced(
    fresh_root: Root, noise_data: DataSource, tmp_path: Path
) -> None:
    frame = make_noise_frame()
    frame["ds"] += pd.DateOffset(years=200)
    frame.to_csv(tmp_path / "future.csv", index=False)
    future = DataSource(str(tmp_path / "future.csv"))
    assert retrain(future, make_small_spec(), fresh_root).verdict.failed_checks == ("clock",)
    with pytest.raises(RefusedByGate, match="clock"):
        promote_version("small", fresh_root, version_number="1", force=False)
    assert find_champion(Registry(fresh_root.store_uri), "small") is None
    assert retrain(
        future, make_small_spec(), fresh_root, RetrainOptions(force_retrain=True), clock=lambda: YEAR_2226
    ).champion
    poisoned = champion_number(fresh_root)

    triggered = check_triggers("small", read_panel(noise_data), fresh_root)
    assert "2226-01-03T11:00:00" in triggered.reasons[0]
    assert "after the present" in triggered.reasons[0]
    assert not check_triggers("small", read_panel(noise_data), fresh_root, max_days_ahead=1e6), "declared"
    verdict = retrain(noise_data, make_small_spec(), fresh_root, RetrainOptions(policy=LENIENT_POLICY)).verdict
    checks = {check.name: check for check in verdict.checks}
    assert (checks["clock"].passed, checks["fresh"].passed) == (True, None)
    assert checks["champion"].value is not None, "the two are compared on the right data"
    if not verdict.should_promote:
        promote_version("small", fresh_root, version_number=None, force=True, reason="timestamps of the champion")
    assert champion_number(fresh_root) != poisoned
    assert not check_triggers("small", read_panel(noise_data), fresh_root)


def run_command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as raised:
        main([*map(str, arguments)])
    return int(raised.value.code or 0)


def test_the_repeated_command_returns_the_original_exit_code(
    fresh_root: Root, noise_data: DataSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = (
        write_config(tmp_path / f"{rate}.yaml", make_small_spec(learning_rate=rate))
        for rate in (1e-3, BAD_LEARNING_RATE)
    )
    root_option = ("--root", fresh_root.path)
    assert [run_command("retrain", noise_data.source, "--config", good, *root_option) for _ in range(2)] == [0, 0]
    output = capsys.readouterr().out
    assert "done before" in output
    assert output.count("small version 1 is the champion: ") == 2
    assert [run_command("retrain", noise_data.source, "--config", bad, *root_option) for _ in range(2)] == [3, 3]
    assert version_numbers(fresh_root) == ["1", "2"]
    promote_version("small", fresh_root, version_number="2", force=True, reason="for this test")
    assert run_command("retrain", noise_data.source, "--config", good, *root_option) == 0
    output = capsys.readouterr().out
    assert "small version 1 was promoted before and is not the champion now; the champion is version 2" in output
    roll_back("small", fresh_root)
    shutil.rmtree(fresh_root.bundles)
    capsys.readouterr()
    assert run_command("retrain", noise_data.source, "--config", bad, "--if-needed", *root_option) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (
        run_command("retrain", noise_data.source, "--config", good, "--if-needed", "--min-new", "0", *root_option) == 2
    )
    assert find_champion(Registry(fresh_root.store_uri), "small") is not None


def test_the_command_reads_validates_and_hashes_its_data_once(
    fresh_root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Triggers, selection of the specification and training use one panel."""
    calls: list[str] = []

    def count_calls(owner: Any, name: str) -> None:
        function = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *arguments, **options: calls.append(name) or function(*arguments, **options)
        )

    path = tmp_path / "small.csv"
    make_noise_frame().to_csv(path, index=False)
    retrain(DataSource(str(path)), make_small_spec(), fresh_root)
    make_noise_frame(steps=64).to_csv(path, index=False)
    candidates = [make_small_spec(seed=seed, valid_windows=1) for seed in (1, 2)]
    monkeypatch.setattr(selection, "build_candidate_specs", lambda *_, **__: candidates)
    for owner, name in ((panels, "read_table"), (panels, "to_panel"), (Panel.digest, "func")):
        count_calls(owner, name)
    assert run_command("retrain", path, "--horizon", 4, "--if-needed", "--root", fresh_root.path) == 3
    assert capsys.readouterr().out.startswith("needed  4 new steps")
    assert calls[:2] == ["read_table", "to_panel"]
    assert calls[2:] == ["func"] * 3, "the digests of three contents: for the selection, the key and the training"
