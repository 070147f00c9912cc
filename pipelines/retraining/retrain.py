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
from forecaster.evaluation.calibration import with_quantiles
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.registry.registry import CHALLENGER, CHAMPION, Registry, Version
from forecaster.spec import Spec
from forecaster.storage.failpoints import point
from pipelines.promotion.audit_log import AuditLog
from pipelines.promotion.evidence import gather
from pipelines.promotion.gate import LEVELS, Verdict, judge
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import champion_of, fetch, record, recorded, register
from pipelines.settings import Root
from pipelines.sources import Data, read
from pipelines.training.retrain_key import TAG, key_of
from pipelines.training.train import Candidate, Trained, tested, train, workplace

_PROMOTED = "promoted"  # the tag of a version whose promotion is done; a rollback later on does not take it away
_log = logging.getLogger(__name__)


class Retrained(NamedTuple):
    """A training, the version it became, and the gate's verdict."""

    trained: Trained
    version: Version
    verdict: Verdict
    champion: Forecaster | None  # who answers users now: this one, if it was promoted
    report: Path  # the page of the verdict


class Trial(NamedTuple):
    """A version that is to be judged, and against whom."""

    trained: Trained
    version: Version
    base: Version | None  # the champion that its backtest asked
    champion: Forecaster | None


def retrain(
    data: Data,
    spec: Spec,
    root: Root,
    *,
    warm: bool = False,
    test_windows: int = 1,
    policy: Policy | None = None,
    trigger: str = "cli",
    progress: bool = False,
) -> Retrained:
    """Reads, splits, fits, backtests against champion and seasonal naive, registers, and promotes only what is better.

    A warm start begins with the champion's weights, if there is a champion. Each time anew: `retrain_once` asks whether it has
    been done.
    """
    check_windows(test_windows)
    registry = Registry(root.store)
    base = champion_of(registry, spec.name)
    champion = None if base is None else artifact.load(fetch(base, root))
    rivals = {} if champion is None else {CHAMPION: Predictor(champion)}
    trained = train(
        data,
        spec,
        root,
        initial=champion if warm else None,
        rivals=rivals,
        test_windows=test_windows,
        trigger=trigger,
        progress=progress,
    )
    version = register(trained.bundle, root, run_id=trained.run_id)
    return decide(Trial(trained, version, base, champion), root, policy or Policy())


def check_windows(test_windows: int) -> None:
    """Refuses a retraining that could not be judged."""
    if test_windows < 1:
        raise InputError("Retraining needs a test window to judge by; found none. Ask for --test-windows 1 or more.")


def decide(trial: Trial, root: Root, policy: Policy) -> Retrained:
    """Judges a version, records the verdict, and promotes it if no check speaks against it."""
    trained, version, base, champion = trial
    assert trained.result is not None
    Registry(root.store).set_alias(version, CHALLENGER)
    result = with_quantiles(trained.result, {CHALLENGER: trained.forecaster}, levels=LEVELS)
    point("judge.before")
    verdict = judge(result, policy, gather(trained.bundle, result, base=champion))
    point("judge.decided")
    report = record(version, verdict, result, root, policy=policy, against=base)
    point("judge.recorded")
    if verdict.promote:
        promote(version, verdict, root, base=base)
        champion = trained.forecaster
    return Retrained(trained, version, verdict, champion, report)


def promote(version: Version, verdict: Verdict, root: Root, *, base: Version | None) -> None:
    """Makes a version the champion for what its verdict says; repeated after a kill, it is completed."""
    log = AuditLog(root.audit)
    Registry(root.store).promote(version, base=base, record=log.promoted(version, "; ".join(verdict.reasons)))


class Once(NamedTuple):
    """A retraining, its key, and whether it was done before and only answered now."""

    done: Retrained
    key: str
    before: bool


def retrain_once(
    data: Data,
    spec: Spec,
    root: Root,
    *,
    warm: bool = False,
    test_windows: int = 1,
    policy: Policy | None = None,
    trigger: str = "cli",
    tried: Sequence[Candidate] = (),
    progress: bool = False,
    again: bool = False,
) -> Once:
    """As `retrain`, but the same key makes one version and has one verdict, however often it is asked for.

    What a kill left is taken up where it was: a checkpoint, a bundle, a version, a verdict, a promotion. Who asks while another
    process is at the same waits for it, and is answered as it was. On several machines at once nothing waits: there one
    scheduler should ask. With `again` it is trained and judged anew whatever there is; what comes of it is then the answer.
    """
    check_windows(test_windows)
    policy = policy or Policy()
    panel = read(data.for_spec(spec))
    key = key_of(panel, spec, policy, test_windows=test_windows, warm=warm)
    with alone(root.path / "retrainings" / f"{key[:16]}.lock"):
        registry = Registry(root.store)
        version = None if again else registry.find(spec.name, tag=TAG, value=key)
        before = None if version is None else _answered(version, registry, root)
        if before is not None:
            return Once(before, key, before=True)
        base = champion_of(registry, spec.name)
        champion = None if base is None else artifact.load(fetch(base, root))
        rivals = {} if champion is None else {CHAMPION: Predictor(champion)}
        initial = champion if warm else None
        bundle = _made(key, root) if version is None else fetch(version, root)
        under_way = workplace(panel, spec, root, initial=initial, test_windows=test_windows).exists()
        if bundle is None or again or (version is None and under_way):
            trained = train(
                data,
                spec,
                root,
                panel=panel,
                key=key,
                initial=initial,
                rivals=rivals,
                test_windows=test_windows,
                trigger=trigger,
                tried=tried,
                progress=progress,
            )
        else:
            forecaster = artifact.load(bundle)
            result = tested(panel, forecaster, rivals=rivals, windows=test_windows)
            trained = _trained(bundle, forecaster)._replace(result=result)
        point("retrain.trained")
        version = register(trained.bundle, root, run_id=trained.run_id, tags={TAG: key})
        registry.tag(version, TAG, key)  # a person may have registered the bundle meanwhile, without it
        done = decide(Trial(trained, version, base, champion), root, policy)
        point("retrain.promoted")
        if done.verdict.promote:
            registry.tag(version, _PROMOTED, "yes")
        return Once(done, key, before=False)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time, the others wait; the kernel frees the lock when its holder dies. The file goes with the last."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _log.warning("The same retraining is running already; waiting for its verdict.")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still(lock, file.fileno()):
                continue  # its holder has taken the file away
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_still(lock: Path, handle: int) -> bool:
    try:
        return lock.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def _answered(version: Version, registry: Registry, root: Root) -> Retrained | None:
    """What was decided of a version before; a promotion that was decided and not done is done now.

    None where it has to be judged: there is no verdict, or one against another champion than there is.
    """
    kept = recorded(version, root)
    if kept is None:
        return None
    champion = champion_of(registry, version.name)
    if kept.verdict.promote and not _was_promoted(version, registry, root):
        if champion != version and (None if champion is None else champion.number) != kept.against:
            return None
        promote(version, kept.verdict, root, base=champion)
        point("retrain.promoted")
        registry.tag(version, _PROMOTED, "yes")
        champion = version
    bundle = fetch(version, root)
    trained = _trained(bundle, artifact.load(bundle))
    answering = None if champion is None else artifact.load(fetch(champion, root))
    return Retrained(trained, version, kept.verdict, answering, kept.page)


def _was_promoted(version: Version, registry: Registry, root: Root) -> bool:
    if registry.tags(version).get(_PROMOTED) == "yes":
        return True
    lines = AuditLog(root.audit).read().lines
    return any((line.name, line.version) == (version.name, version.number) for line in lines)


def _made(key: str, root: Root) -> Path | None:
    """The bundle that a killed retraining of this key wrote, if it is whole."""
    for folder in sorted(root.bundles.glob("[!.]*")):
        try:
            if artifact.read_manifest(folder).facts.get(TAG) == key:
                return folder
        except BundleError:
            continue
    return None


def _trained(bundle: Path, forecaster: Forecaster) -> Trained:
    scores = forecaster.facts["backtest"]
    return Trained(bundle, artifact.digest(bundle), str(forecaster.facts["run_id"]), forecaster, scores, None)
