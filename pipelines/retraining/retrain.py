"""Retraining: read, fit, backtest, register, judge, promote. Each step happens once per key, also after an interruption."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from forecaster.bundle import artifact
from forecaster.errors import BundleError, InputError
from forecaster.evaluation.calibration import add_quantiles
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.registry.registry import CHALLENGER, CHAMPION, BundleVersion, Registry
from forecaster.spec import Spec
from forecaster.storage.failpoints import fail_point
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.evidence import measure_bundle
from pipelines.promotion.gate import GATE_LEVELS, Verdict, judge
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import fetch_bundle, find_champion, load_verdict, record_verdict, register_bundle
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.training.retrain_key import RETRAIN_KEY_TAG, compute_retrain_key
from pipelines.training.train import CandidateScore, TrainingResult, get_checkpoint_folder, run_test_backtest, train

_PROMOTED_TAG = "promoted"  # the tag of a version whose promotion is complete; a later rollback does not remove it
_log = logging.getLogger(__name__)


class RetrainResult(NamedTuple):
    """A training, the version that was registered for it, and the verdict of the gate."""

    training: TrainingResult
    version: BundleVersion
    verdict: Verdict
    champion: FittedModel | None  # the model in use afterwards: the new one if it was promoted
    report_path: Path  # the HTML report of the verdict


class PromotionCandidate(NamedTuple):
    """A version to be judged, and the champion that it is compared with."""

    training: TrainingResult
    version: BundleVersion
    champion_version: BundleVersion | None  # the champion in the candidate's backtest
    champion: FittedModel | None


def retrain(
    data: DataSource,
    spec: Spec,
    root: Root,
    *,
    warm_start: bool = False,
    test_windows: int = 1,
    policy: Policy | None = None,
    trigger: str = "cli",
    show_progress: bool = False,
) -> RetrainResult:
    """Trains a model, backtests it against champion and seasonal naive, registers it, and promotes it only if it is better.

    A warm start uses the weights of the champion, if there is one. Every call trains again; `retrain_once` first looks for an
    earlier result.
    """
    require_test_window(test_windows)
    registry = Registry(root.store_uri)
    champion_version = find_champion(registry, spec.name)
    champion = None if champion_version is None else artifact.load_bundle(fetch_bundle(champion_version, root))
    reference_forecasters = {} if champion is None else {CHAMPION: Predictor(champion)}
    training = train(
        data,
        spec,
        root,
        initial=champion if warm_start else None,
        reference_forecasters=reference_forecasters,
        test_windows=test_windows,
        trigger=trigger,
        show_progress=show_progress,
    )
    version = register_bundle(training.bundle, root, run_id=training.run_id)
    candidate = PromotionCandidate(training, version, champion_version, champion)
    return judge_and_promote(candidate, root, policy or Policy())


def require_test_window(test_windows: int) -> None:
    """Rejects a retraining that could not be judged; raises InputError."""
    if test_windows < 1:
        raise InputError(
            f"Expected at least 1 test window, on which a retraining is judged; found {test_windows}. Use "
            "--test-windows 1 or more."
        )


def judge_and_promote(candidate: PromotionCandidate, root: Root, policy: Policy) -> RetrainResult:
    """Judges a version, records the verdict, and promotes the version if no check fails."""
    training, version, champion_version, champion = candidate
    assert training.backtest is not None
    Registry(root.store_uri).set_alias(version, CHALLENGER)
    result = add_quantiles(training.backtest, {CHALLENGER: training.model}, levels=GATE_LEVELS)
    fail_point("judge.before")
    verdict = judge(result, policy, measure_bundle(training.bundle, result, champion=champion))
    fail_point("judge.decided")
    report_path = record_verdict(version, verdict, result, root, policy=policy, champion=champion_version)
    fail_point("judge.recorded")
    if verdict.should_promote:
        promote_by_verdict(version, verdict, root, champion=champion_version)
        champion = training.model
    return RetrainResult(training, version, verdict, champion, report_path)


def promote_by_verdict(version: BundleVersion, verdict: Verdict, root: Root, *, champion: BundleVersion | None) -> None:
    """Makes a version the champion for the reasons of its verdict; a call that was interrupted can be repeated."""
    registry = Registry(root.store_uri)
    log = AuditLog(root.audit_log, registry)
    registry.promote(
        version,
        expected_champion=champion,
        on_promoted=log.make_promotion_recorder(version, "; ".join(verdict.reasons)),
    )


class KeyedRetrainResult(NamedTuple):
    """The result of a retraining, its key, and whether the result is an earlier one that was loaded."""

    result: RetrainResult
    key: str
    already_done: bool


def retrain_once(
    data: DataSource,
    spec: Spec,
    root: Root,
    *,
    warm_start: bool = False,
    test_windows: int = 1,
    policy: Policy | None = None,
    trigger: str = "cli",
    candidates: Sequence[CandidateScore] = (),
    show_progress: bool = False,
    force_retrain: bool = False,
) -> KeyedRetrainResult:
    """Retrains like `retrain`, but one key gives one version and one verdict, however often the function is called.

    An interrupted retraining continues from what it left: a checkpoint, a bundle, a version, a verdict or a promotion. A second
    process of the same root waits for the first and returns the same result. Processes on several machines do not wait for
    each other; there, a single scheduler should start the retrainings. `force_retrain` trains and judges again in any case;
    its result is then the one that is returned for the key.
    """
    require_test_window(test_windows)
    policy = policy or Policy()
    panel = read_panel(data.for_spec(spec))
    key = compute_retrain_key(panel, spec, policy, test_windows=test_windows, warm_start=warm_start)
    with hold_retrain_lock(root.path / "retrainings" / f"{key[:16]}.lock"):
        registry = Registry(root.store_uri)
        version = None if force_retrain else registry.find_version(spec.name, tag=RETRAIN_KEY_TAG, value=key)
        previous = None if version is None else _load_previous_result(version, registry, root)
        if previous is not None:
            return KeyedRetrainResult(previous, key, already_done=True)
        champion_version = find_champion(registry, spec.name)
        champion = None if champion_version is None else artifact.load_bundle(fetch_bundle(champion_version, root))
        reference_forecasters = {} if champion is None else {CHAMPION: Predictor(champion)}
        initial = champion if warm_start else None
        bundle = _find_bundle(key, root) if version is None else fetch_bundle(version, root)
        is_unfinished = get_checkpoint_folder(panel, spec, root, initial=initial, test_windows=test_windows).exists()
        if bundle is None or force_retrain or (version is None and is_unfinished):
            training = train(
                data,
                spec,
                root,
                panel=panel,
                retrain_key=key,
                initial=initial,
                reference_forecasters=reference_forecasters,
                test_windows=test_windows,
                trigger=trigger,
                candidates=candidates,
                show_progress=show_progress,
            )
        else:
            model = artifact.load_bundle(bundle)
            backtest = run_test_backtest(
                panel, model, reference_forecasters=reference_forecasters, test_windows=test_windows
            )
            training = _load_training_result(bundle, model)._replace(backtest=backtest)
        fail_point("retrain.trained")
        version = register_bundle(training.bundle, root, run_id=training.run_id, tags={RETRAIN_KEY_TAG: key})
        registry.set_tag(version, RETRAIN_KEY_TAG, key)  # the bundle may have been registered manually, without the tag
        candidate = PromotionCandidate(training, version, champion_version, champion)
        result = judge_and_promote(candidate, root, policy)
        fail_point("retrain.promoted")
        if result.verdict.should_promote:
            registry.set_tag(version, _PROMOTED_TAG, "yes")
        return KeyedRetrainResult(result, key, already_done=False)


@contextmanager
def hold_retrain_lock(lock_path: Path) -> Iterator[None]:
    """Holds a lock file; other processes wait. The kernel releases the lock when its holder dies; the holder deletes the file."""
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock_path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning("The same retraining is already running; waiting for its verdict.")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_same_file(lock_path, file.fileno()):
                continue  # the previous holder deleted the file
            try:
                yield
            finally:
                lock_path.unlink(missing_ok=True)
            return


def _is_same_file(lock_path: Path, file_descriptor: int) -> bool:
    try:
        return lock_path.stat().st_ino == os.fstat(file_descriptor).st_ino
    except FileNotFoundError:
        return False


def _load_previous_result(version: BundleVersion, registry: Registry, root: Root) -> RetrainResult | None:
    """Loads the recorded verdict of a version, and completes its promotion if it was interrupted.

    Returns None if the version has to be judged: it has no verdict, or one against another champion than the current one.
    """
    record = load_verdict(version, root)
    if record is None:
        return None
    champion_version = find_champion(registry, version.name)
    if record.verdict.should_promote and not _was_promoted(version, registry, root):
        champion_number = None if champion_version is None else champion_version.number
        if champion_version != version and champion_number != record.champion_number:
            return None
        promote_by_verdict(version, record.verdict, root, champion=champion_version)
        fail_point("retrain.promoted")
        registry.set_tag(version, _PROMOTED_TAG, "yes")
        champion_version = version
    bundle = fetch_bundle(version, root)
    training = _load_training_result(bundle, artifact.load_bundle(bundle))
    champion = None if champion_version is None else artifact.load_bundle(fetch_bundle(champion_version, root))
    return RetrainResult(training, version, record.verdict, champion, record.report_path)


def _was_promoted(version: BundleVersion, registry: Registry, root: Root) -> bool:
    if registry.get_tags(version).get(_PROMOTED_TAG) == "yes":
        return True
    entries = AuditLog(root.audit_log).read_entries().entries
    return any((entry.name, entry.version) == (version.name, version.number) for entry in entries)


def _find_bundle(key: str, root: Root) -> Path | None:
    """Returns the complete bundle that an interrupted retraining of this key wrote, if there is one."""
    for folder in sorted(root.bundles.glob("[!.]*")):
        try:
            if artifact.read_manifest(folder).facts.get(RETRAIN_KEY_TAG) == key:
                return folder
        except BundleError:
            continue
    return None


def _load_training_result(bundle: Path, model: FittedModel) -> TrainingResult:
    scores = model.facts["backtest"]
    return TrainingResult(
        bundle, artifact.compute_bundle_digest(bundle), str(model.facts["run_id"]), model, scores, None
    )
