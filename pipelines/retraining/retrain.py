"""Retraining: read, fit, backtest, register, judge, promote. Each step happens once per key, also after an interruption."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from forecaster.bundle import artifact
from forecaster.data.symbols import refuse_symbols
from forecaster.errors import BundleError, InputError
from forecaster.evaluation.calibration import add_quantiles
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.registry.registry import CHALLENGER, CHAMPION, BundleVersion, Registry
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage.failpoints import fail_point
from forecaster.storage.locks import open_locked
from forecaster.training.sequence import run_test_backtest, select_training_panel
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.evidence import Clock, measure_bundle, utc_now
from pipelines.promotion.gate import GATE_LEVELS, judge
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import fetch_bundle, find_champion, load_verdict, record_verdict, register_bundle
from pipelines.promotion.verdict import Verdict
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.training.retrain_key import RETRAIN_KEY_TAG, compute_retrain_key
from pipelines.training.train import TrainingResult, TrainOptions, get_checkpoint_folder, train

_PROMOTED_TAG = "promoted"  # the tag of a version whose promotion is complete; a later rollback does not remove it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrainOptions(TrainOptions):
    """How a retraining is trained, judged and recorded.

    Attributes:
        warm_start: Whether to start from the weights of the champion, if there is one.
        policy: Thresholds of the promotion gate.
        force_retrain: Whether to train and judge again even if there is a verdict already; the new one then replaces it.

    Raises InputError without a test window, on which the retraining could be judged.
    """

    warm_start: bool = False
    policy: Policy = field(default_factory=Policy)
    force_retrain: bool = False

    def __post_init__(self) -> None:
        if self.test_windows < 1:
            raise InputError(
                f"Expected at least 1 test window, on which a retraining is judged; found {self.test_windows}. Use "
                "--test-windows 1 or more."
            )


_DEFAULT_OPTIONS = RetrainOptions()


class RetrainResult(NamedTuple):
    """A training, the version that was registered for it, and the verdict of the gate."""

    training: TrainingResult
    version: BundleVersion
    verdict: Verdict
    champion: FittedModel | None  # the model in use afterwards: the new one if it was promoted
    champion_version: BundleVersion | None  # that model's version, as the registry names it afterwards
    report_path: Path  # the HTML report of the verdict
    key: str
    already_done: bool = False  # whether this is the recorded result of an earlier retraining


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
    options: RetrainOptions = _DEFAULT_OPTIONS,
    *,
    panel: Panel | None = None,
    clock: Clock = utc_now,
    progress: Progress = NO_PROGRESS,
) -> RetrainResult:
    """Trains a model, backtests it against champion and seasonal naive, registers it, and promotes it only if it is better.

    One key (`compute_retrain_key`) gives one version and one verdict, however often the function is called. An interrupted
    retraining continues from what it left: a checkpoint, a bundle, a version, a verdict or a promotion. A second process of
    the same root waits for the first and returns the same result. Processes on several machines do not wait for each other;
    there, a single scheduler should start the retrainings.

    Args:
        data: Where the panel comes from.
        spec: The specification of the model.
        root: The root folder.
        options: How the retraining is trained, judged and recorded.
        panel: The panel of the data, if it was read already.
        clock: Returns the present, with which the timestamps of the data are compared.
        progress: Receives the phases of the training, and the judgement.
    """
    refuse_symbols(
        spec,
        what="a retraining, which judges models by MASE",
        advice="Use `forecaster train`, `forecaster register` and `forecaster promote`.",
    )
    panel = read_panel(data.for_spec(spec), now=clock()) if panel is None else panel
    windows = options.test_windows
    key = compute_retrain_key(panel, spec, options.policy, test_windows=windows, warm_start=options.warm_start)
    with hold_retrain_lock(root.path / "retrainings" / f"{key[:16]}.lock"):
        registry = Registry(root.store_uri)
        version = None if options.force_retrain else registry.find_version(spec.name, tag=RETRAIN_KEY_TAG, value=key)
        previous = None if version is None else _load_previous_result(version, key, registry, root)
        if previous is not None:
            return previous
        champion_version = find_champion(registry, spec.name)
        champion = None if champion_version is None else artifact.load_bundle(fetch_bundle(champion_version, root))
        reference_forecasters = {} if champion is None else {CHAMPION: Predictor(champion)}
        initial = champion if options.warm_start else None
        bundle = None if options.force_retrain else _find_bundle(key, root)
        if version is not None:
            bundle = fetch_bundle(version, root)
        elif bundle is not None:
            training_panel = select_training_panel(panel, spec, windows)
            if get_checkpoint_folder(training_panel, spec, root, initial=initial).exists():
                bundle = None  # the training was killed before the end of its run, and resumes
        if bundle is None:
            training = train(
                data,
                spec,
                root,
                options,
                panel=panel,
                retrain_key=key,
                initial=initial,
                reference_forecasters=reference_forecasters,
                progress=progress,
            )
        else:
            model = artifact.load_bundle(bundle)
            backtest = run_test_backtest(
                panel, model, reference_forecasters=reference_forecasters, test_windows=windows, progress=progress
            )
            training = _load_training_result(bundle, model)._replace(backtest=backtest)
        fail_point("retrain.trained")
        with progress.phase("registration"):
            version = register_bundle(training.bundle, root, run_id=training.run_id, tags={RETRAIN_KEY_TAG: key})
            registry.set_tag(
                version, RETRAIN_KEY_TAG, key
            )  # the bundle may have been registered manually, without the tag
            progress.update(0, f"{version.name} version {version.number}")
        candidate = PromotionCandidate(training, version, champion_version, champion)
        with progress.phase("judgement"):
            result = judge_and_promote(candidate, root, options.policy, key=key, now=clock())
            progress.update(0, "promoted" if result.verdict.should_promote else "not promoted")
        return result


def judge_and_promote(
    candidate: PromotionCandidate, root: Root, policy: Policy, *, key: str, now: datetime
) -> RetrainResult:
    """Judges a version at the present `now`, records the verdict, and promotes the version if no check fails."""
    training, version, champion_version, champion = candidate
    assert training.backtest is not None
    Registry(root.store_uri).set_alias(version, CHALLENGER)
    models = {CHALLENGER: training.model}
    if champion is not None and CHAMPION in training.backtest.forecasts:
        models[CHAMPION] = champion
    result = add_quantiles(training.backtest, models, levels=GATE_LEVELS)
    fail_point("judge.before")
    verdict = judge(result, policy, measure_bundle(training.bundle, result, champion=champion, now=now))
    fail_point("judge.decided")
    report_path = record_verdict(version, verdict, result, root, policy=policy, champion=champion_version)
    fail_point("judge.recorded")
    if verdict.should_promote:
        promote_by_verdict(version, verdict, root, champion=champion_version)
        champion, champion_version = training.model, find_champion(Registry(root.store_uri), version.name)
    return RetrainResult(training, version, verdict, champion, champion_version, report_path, key)


def promote_by_verdict(version: BundleVersion, verdict: Verdict, root: Root, *, champion: BundleVersion | None) -> None:
    """Makes a version the champion for the reasons of its verdict; a call that was interrupted can be repeated."""
    registry = Registry(root.store_uri)
    log = AuditLog(root.audit_log, registry)
    registry.promote(
        version,
        expected_champion=champion,
        on_promoted=log.make_promotion_recorder(version, "; ".join(verdict.reasons)),
    )
    fail_point("retrain.promoted")
    registry.set_tag(version, _PROMOTED_TAG, "yes")


@contextmanager
def hold_retrain_lock(lock_path: Path) -> Iterator[None]:
    """Holds a lock file; other processes wait. The holder deletes the file."""
    try:
        lock = open_locked(lock_path)
    except BlockingIOError:
        _log.warning("The same retraining is already running; waiting for its verdict.")
        lock = open_locked(lock_path, timeout_s=None)
    with lock:
        try:
            yield
        finally:
            lock_path.unlink(missing_ok=True)


def _load_previous_result(version: BundleVersion, key: str, registry: Registry, root: Root) -> RetrainResult | None:
    """Loads the recorded verdict of a version, and completes its promotion if it was interrupted.

    Returns None if the version has to be judged: it has no verdict, or one against another champion than the current one.
    """
    record = load_verdict(version, root)
    if record is None:
        return None
    champion_version = find_champion(registry, version.name)
    # The log may have the line of a promotion that was killed before its seal was stored.
    is_complete = registry.get_tags(version).get(_PROMOTED_TAG) == "yes"
    if (
        record.verdict.should_promote
        and not is_complete
        and (champion_version == version or not _is_recorded(version, root))
    ):
        champion_number = None if champion_version is None else champion_version.number
        if champion_version != version and champion_number != record.champion_number:
            return None
        promote_by_verdict(version, record.verdict, root, champion=champion_version)
        champion_version = version
    bundle = fetch_bundle(version, root)
    training = _load_training_result(bundle, artifact.load_bundle(bundle))
    champion = None if champion_version is None else artifact.load_bundle(fetch_bundle(champion_version, root))
    return RetrainResult(
        training, version, record.verdict, champion, champion_version, record.report_path, key, already_done=True
    )


def _is_recorded(version: BundleVersion, root: Root) -> bool:
    """Whether the audit log has a line of a version, which was the champion then."""
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
