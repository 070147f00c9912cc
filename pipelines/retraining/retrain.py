"""Retraining: read, fit, backtest, register, judge, promote; each once for each key, whatever was interrupted before."""

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

_PROMOTED_TAG = "promoted"  # the tag of a version whose promotion is done; a rollback later on does not take it away
_log = logging.getLogger(__name__)


class RetrainResult(NamedTuple):
    """A training, the version it became, and the gate's verdict."""

    training: TrainingResult
    version: BundleVersion
    verdict: Verdict
    champion: FittedModel | None  # who answers users now: this one, if it was promoted
    report_path: Path  # the page of the verdict


class PromotionCandidate(NamedTuple):
    """A version that is to be judged, and against whom."""

    training: TrainingResult
    version: BundleVersion
    champion_version: BundleVersion | None  # the champion that its backtest asked
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
    """Reads, splits, fits, backtests against champion and seasonal naive, registers, and promotes only what is better.

    A warm start begins with the champion's weights, if there is a champion. Each time anew: `retrain_once` asks whether it has
    been done.
    """
    require_test_window(test_windows)
    registry = Registry(root.store_uri)
    base = find_champion(registry, spec.name)
    champion = None if base is None else artifact.load_bundle(fetch_bundle(base, root))
    rivals = {} if champion is None else {CHAMPION: Predictor(champion)}
    trained = train(
        data,
        spec,
        root,
        initial=champion if warm_start else None,
        reference_forecasters=rivals,
        test_windows=test_windows,
        trigger=trigger,
        show_progress=show_progress,
    )
    version = register_bundle(trained.bundle, root, run_id=trained.run_id)
    return judge_and_promote(PromotionCandidate(trained, version, base, champion), root, policy or Policy())


def require_test_window(test_windows: int) -> None:
    """Refuses a retraining that could not be judged."""
    if test_windows < 1:
        raise InputError("Retraining needs a test window to judge by; found none. Ask for --test-windows 1 or more.")


def judge_and_promote(candidate: PromotionCandidate, root: Root, policy: Policy) -> RetrainResult:
    """Judges a version, records the verdict, and promotes it if no check speaks against it."""
    trained, version, base, champion = candidate
    assert trained.backtest is not None
    Registry(root.store_uri).set_alias(version, CHALLENGER)
    result = add_quantiles(trained.backtest, {CHALLENGER: trained.forecaster}, levels=GATE_LEVELS)
    fail_point("judge.before")
    verdict = judge(result, policy, measure_bundle(trained.bundle, result, champion=champion))
    fail_point("judge.decided")
    report = record_verdict(version, verdict, result, root, policy=policy, champion=base)
    fail_point("judge.recorded")
    if verdict.should_promote:
        promote_by_verdict(version, verdict, root, champion=base)
        champion = trained.forecaster
    return RetrainResult(trained, version, verdict, champion, report)


def promote_by_verdict(version: BundleVersion, verdict: Verdict, root: Root, *, champion: BundleVersion | None) -> None:
    """Makes a version the champion for what its verdict says; repeated after a kill, it is completed."""
    log = AuditLog(root.audit_log)
    Registry(root.store_uri).promote(
        version,
        expected_champion=champion,
        on_promoted=log.make_promotion_recorder(version, "; ".join(verdict.reasons)),
    )


class KeyedRetrainResult(NamedTuple):
    """A retraining, its key, and whether it was done before and only answered now."""

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
    """As `retrain`, but the same key makes one version and has one verdict, however often it is asked for.

    What a kill left is taken up where it was: a checkpoint, a bundle, a version, a verdict, a promotion. Who asks while another
    process is at the same waits for it, and is answered as it was. On several machines at once nothing waits: there one
    scheduler should ask. With `force_retrain` it is trained and judged anew whatever there is; what comes of it is then the answer.
    """
    require_test_window(test_windows)
    policy = policy or Policy()
    panel = read_panel(data.for_spec(spec))
    key = compute_retrain_key(panel, spec, policy, test_windows=test_windows, warm_start=warm_start)
    with hold_retrain_lock(root.path / "retrainings" / f"{key[:16]}.lock"):
        registry = Registry(root.store_uri)
        version = None if force_retrain else registry.find_version(spec.name, tag=RETRAIN_KEY_TAG, value=key)
        before = None if version is None else _load_previous_result(version, registry, root)
        if before is not None:
            return KeyedRetrainResult(before, key, already_done=True)
        base = find_champion(registry, spec.name)
        champion = None if base is None else artifact.load_bundle(fetch_bundle(base, root))
        rivals = {} if champion is None else {CHAMPION: Predictor(champion)}
        initial = champion if warm_start else None
        bundle = _find_bundle(key, root) if version is None else fetch_bundle(version, root)
        under_way = get_checkpoint_folder(panel, spec, root, initial=initial, test_windows=test_windows).exists()
        if bundle is None or force_retrain or (version is None and under_way):
            trained = train(
                data,
                spec,
                root,
                panel=panel,
                retrain_key=key,
                initial=initial,
                reference_forecasters=rivals,
                test_windows=test_windows,
                trigger=trigger,
                candidates=candidates,
                show_progress=show_progress,
            )
        else:
            forecaster = artifact.load_bundle(bundle)
            result = run_test_backtest(panel, forecaster, reference_forecasters=rivals, test_windows=test_windows)
            trained = _load_training_result(bundle, forecaster)._replace(backtest=result)
        fail_point("retrain.trained")
        version = register_bundle(trained.bundle, root, run_id=trained.run_id, tags={RETRAIN_KEY_TAG: key})
        registry.set_tag(version, RETRAIN_KEY_TAG, key)  # a person may have registered the bundle meanwhile, without it
        done = judge_and_promote(PromotionCandidate(trained, version, base, champion), root, policy)
        fail_point("retrain.promoted")
        if done.verdict.should_promote:
            registry.set_tag(version, _PROMOTED_TAG, "yes")
        return KeyedRetrainResult(done, key, already_done=False)


@contextmanager
def hold_retrain_lock(lock_path: Path) -> Iterator[None]:
    """One process at a time, the others wait; the kernel frees the lock when its holder dies. The file goes with the last."""
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock_path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning("The same retraining is running already; waiting for its verdict.")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_same_file(lock_path, file.fileno()):
                continue  # its holder has taken the file away
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
    """What was decided of a version before; a promotion that was decided and not done is done now.

    None where it has to be judged: there is no verdict, or one against another champion than there is.
    """
    kept = load_verdict(version, root)
    if kept is None:
        return None
    champion = find_champion(registry, version.name)
    if kept.verdict.should_promote and not _was_promoted(version, registry, root):
        if champion != version and (None if champion is None else champion.number) != kept.champion_number:
            return None
        promote_by_verdict(version, kept.verdict, root, champion=champion)
        fail_point("retrain.promoted")
        registry.set_tag(version, _PROMOTED_TAG, "yes")
        champion = version
    bundle = fetch_bundle(version, root)
    trained = _load_training_result(bundle, artifact.load_bundle(bundle))
    answering = None if champion is None else artifact.load_bundle(fetch_bundle(champion, root))
    return RetrainResult(trained, version, kept.verdict, answering, kept.report_path)


def _was_promoted(version: BundleVersion, registry: Registry, root: Root) -> bool:
    if registry.get_tags(version).get(_PROMOTED_TAG) == "yes":
        return True
    lines = AuditLog(root.audit_log).read_entries().entries
    return any((line.name, line.version) == (version.name, version.number) for line in lines)


def _find_bundle(key: str, root: Root) -> Path | None:
    """The bundle that a killed retraining of this key wrote, if it is whole."""
    for folder in sorted(root.bundles.glob("[!.]*")):
        try:
            if artifact.read_manifest(folder).facts.get(RETRAIN_KEY_TAG) == key:
                return folder
        except BundleError:
            continue
    return None


def _load_training_result(bundle: Path, forecaster: FittedModel) -> TrainingResult:
    scores = forecaster.facts["backtest"]
    return TrainingResult(
        bundle, artifact.compute_bundle_digest(bundle), str(forecaster.facts["run_id"]), forecaster, scores, None
    )
