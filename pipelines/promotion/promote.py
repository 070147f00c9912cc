"""Registration and promotion of bundles, and the verdicts that are stored with their versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.bundle import artifact
from forecaster.data.symbols import SYMBOL_SCORES_FACT
from forecaster.errors import InputError, NoSuchModel, RefusedByGate, RegistryError
from forecaster.evaluation.backtest import Backtest
from forecaster.frequency.timestamps import build_timestamps, synthetic_start
from forecaster.prediction.fitted_model import FittedModel
from forecaster.registry.registry import CHALLENGER, CHAMPION, BundleVersion, Registry
from forecaster.storage import atomic
from pipelines.promotion.audit_log import (
    SEAL_TAG,
    AuditEntry,
    AuditLog,
    AuditReport,
    RegistrySeal,
    find_seal_fault,
)
from pipelines.promotion.evidence import (
    Clock,
    compute_megabytes,
    count_days_ahead,
    count_steps_behind,
    find_frequency_difference,
    utc_now,
)
from pipelines.promotion.gate import judge_reported_scores
from pipelines.promotion.policy import Policy
from pipelines.promotion.report import parse_verdict_json, render_verdict_html, render_verdict_json
from pipelines.promotion.verdict import Evidence, Verdict
from pipelines.settings import Root
from pipelines.tracking.logger import log_tracking_errors
from pipelines.tracking.run import append_to_run, has_run, read_run_text, record_imported_bundle

_GATE_TAG, _VERDICT_FILE, _REPORT_FILE = (
    "gate",
    "verdict.json",
    "report.html",
)  # the run's folder (also its tag), and the files in it
_FAILED_CHECKS_TAG, _GATE_REFUSED = (
    "gate_failed",
    "keep",
)  # `gate` is promote or keep; `gate_failed` lists the failed checks


def register_bundle(
    bundle: Path, root: Root, *, run_id: str | None = None, tags: Mapping[str, str] | None = None
) -> BundleVersion:
    """Registers a bundle as a version of its spec's name; returns the existing version if it is registered already.

    A bundle that was trained elsewhere gets a run of its registration, with its scores and its model card.
    """
    model, digest = artifact.load_bundle(bundle), artifact.compute_bundle_digest(bundle)
    run = run_id or _find_or_record_run(bundle, model, digest, root)
    steps = model.spec.context
    timestamps = build_timestamps(synthetic_start(model.freq), freq=model.freq, steps=steps + 2)
    vocabulary = model.spec.head.vocabulary
    y = np.resize(np.array(vocabulary, dtype=object), steps) if vocabulary else np.arange(1.0, steps + 1)
    result = {"symbol": np.resize(np.array(vocabulary, dtype=object), 2)} if vocabulary else {"mean": [0.0, 0.0]}
    input_example = pd.DataFrame({"unique_id": "example", "ds": timestamps[:steps], "y": y})
    output_example = pd.DataFrame({"unique_id": "example", "ds": timestamps[steps:], **result})
    return Registry(root.store_uri).register(
        bundle,
        name=model.spec.name,
        digest=digest,
        run_id=run,
        input_example=input_example,
        output_example=output_example,
        tags=tags,
    )


def _find_or_record_run(bundle: Path, model: FittedModel, digest: str, root: Root) -> str:
    """Returns the run that trained a bundle; if the store does not have it, the run of its registration."""
    store_uri, trained_by = root.store_uri, model.facts.get("run_id")
    if trained_by is not None and has_run(str(trained_by), store_uri=store_uri):
        return str(trained_by)
    versions = Registry(store_uri).list_versions(model.spec.name)
    registered_by = next((version.run_id for version in versions if version.digest == digest), None)
    return registered_by or record_imported_bundle(
        model.spec,
        model.facts,
        root=root.path,
        tracking_uri=root.tracking_uri,
        cutoff=model.cutoff,
        digest=digest,
        card=artifact.read_card(bundle),
    )


def fetch_bundle(version: BundleVersion, root: Root) -> Path:
    """Returns the folder of a registered bundle; copies it from the registry on first use."""
    folder = root.bundle_cache / version.digest
    return folder if folder.exists() else Registry(root.store_uri).fetch(version, folder)


def promote_version(
    name: str,
    root: Root,
    *,
    version_number: str | None,
    force: bool,
    reason: str | None = None,
    policy: Policy | None = None,
    clock: Clock = utc_now,
) -> BundleVersion:
    """Makes a version (None: the challenger) the champion.

    A stored verdict of the gate holds: a version that the gate rejected needs `force` and a `reason`, which is written to the
    audit log. A version without a verdict is judged by the backtest scores in its bundle: unless forced, it must not be worse
    than a baseline, its bundle must not be too large, it must have the champion's frequency, and its data must end neither
    before the champion's nor after the present. All checks of the gate are made by `retrain` only.

    Raises:
        NoSuchModel: The version does not exist.
        RefusedByGate: A check failed, or the version has no backtest, and `force` is not set.
        InputError: A reason is required and missing.
    """
    registry = Registry(root.store_uri)
    version = (
        registry.resolve(name, CHALLENGER) if version_number is None else registry.get_version(name, version_number)
    )
    overruled_checks = _describe_overruled_checks(registry, version, force=force, reason=reason)
    champion, bundle = find_champion(registry, name), fetch_bundle(version, root)
    model = artifact.load_bundle(bundle)
    scores = model.facts.get("backtest") or model.facts.get(SYMBOL_SCORES_FACT, {})
    if not force and not scores:
        raise RefusedByGate(
            f"{version} should have backtest scores; it was never tested, but trained on all data. Train it with test "
            "windows, or promote it with --force.",
            where=name,
        )
    if not force:
        champion_model = None if champion is None else artifact.load_bundle(fetch_bundle(champion, root))
        now = clock()
        evidence = Evidence(
            megabytes=compute_megabytes(bundle),
            days_ahead=count_days_ahead(model, now),
            champion_days_ahead=None if champion_model is None else count_days_ahead(champion_model, now),
            steps_behind=None if champion_model is None else count_steps_behind(model, champion_model),
            champion_differences=() if champion_model is None else find_frequency_difference(model, champion_model),
        )
        verdict = judge_reported_scores(scores, policy or Policy(), evidence)
        if not verdict.should_promote:
            raise RefusedByGate(
                f"{version} should pass the gate; {'; '.join(verdict.reasons)}. Train a better model, or promote this "
                "version with --force.",
                where=name,
            )
    recorded_reason = f"forced{overruled_checks}" if force else "at least as good as the baselines in its own backtest"
    recorded_reason += f": {reason}" if reason else ""
    registry.promote(
        version,
        expected_champion=champion,
        on_promoted=AuditLog(root.audit_log, registry).make_promotion_recorder(version, recorded_reason),
    )
    return version


def _describe_overruled_checks(registry: Registry, version: BundleVersion, *, force: bool, reason: str | None) -> str:
    """Describes the failed checks that a forced promotion overrules, for the audit log; empty if the gate did not reject.

    Raises RefusedByGate without `force`, InputError without a reason.
    """
    tags = registry.get_tags(version)
    if tags.get(_GATE_TAG) != _GATE_REFUSED:
        return ""
    failed_checks = tags.get(_FAILED_CHECKS_TAG, "unknown checks")
    if not force:
        raise RefusedByGate(
            f"{version} should have passed the gate; the gate rejected it ({failed_checks}). Train a better model, or promote "
            "this version with --force --reason WHY.",
            where=version.name,
        )
    if not (reason or "").strip():
        raise InputError(
            f"Expected a reason to overrule the gate on {version} ({failed_checks}); found none. Give it with --reason; "
            "it is written to the audit log.",
            where="reason",
        )
    return f" against the gate ({failed_checks})"


def verify_audit_log(root: Root, name: str | None) -> AuditReport:
    """Reads the audit log of one model or of all, and compares it with the registry.

    Faults are also a champion that is not in the log, that has another digest or is gone, and a seal in the registry that is not
    that of the last line.
    """
    report, registry = AuditLog(root.audit_log).read_entries(), Registry(root.store_uri)
    latest = {entry.name: entry for entry in report.entries if not entry.is_local}
    seals = {model.name: RegistrySeal.parse(model.tags.get(SEAL_TAG)) for model in registry.list_models()}
    faults, notes = list(report.faults), []
    for model_name in sorted({*latest, *(n for n, seal in seals.items() if seal), *([] if name is None else [name])}):
        champion, last, seal = find_champion(registry, model_name), latest.get(model_name), seals.get(model_name)
        faults += _find_champion_faults(model_name, champion, last)
        fault = find_seal_fault(report.entries, model_name, seal)
        if fault is not None:
            faults.append(fault)
        elif seal is None and champion is not None:
            notes.append(f"the registry has no seal of '{model_name}' yet; store one with: forecaster audit --adopt")
    return AuditReport(
        tuple(entry for entry in report.entries if name in (None, entry.name)), tuple(faults), tuple(notes)
    )


def _find_champion_faults(name: str, champion: BundleVersion | None, last: AuditEntry | None) -> list[str]:
    if champion is None:
        return [] if last is None else [f"'{name}' has no champion in the registry; the log has version {last.version}"]
    if last is None or last.version != champion.number:
        logged = "no champion" if last is None else f"version {last.version}"
        return [f"the champion of '{name}' is version {champion.number}; the log has {logged}"]
    if last.digest != champion.digest:
        return [
            f"the champion of '{name}' is version {champion.number} with the digest {champion.digest[:12]}; the log has "
            f"{last.digest[:12]}"
        ]
    return []


def adopt_champions(root: Root, name: str | None) -> list[BundleVersion]:
    """Starts the audit log of one model or of all whose champion has no seal in the registry; returns these champions.

    Raises RegistryError if the registry has the seal of a line that the log does not have: such a log is not replaced.
    """
    registry = Registry(root.store_uri)
    log = AuditLog(root.audit_log, registry)
    adopted, seals = [], {entry.seal for entry in log.read_entries().entries}
    for model in registry.list_models():
        if name not in (None, model.name) or CHAMPION not in model.aliases:
            continue
        seal = RegistrySeal.parse(model.tags.get(SEAL_TAG))
        if seal is None:
            champion = registry.get_version(model.name, model.aliases[CHAMPION])
            log.adopt(champion)
            adopted.append(champion)
        elif seal.seal not in seals:
            raise RegistryError(
                f"Expected line {seal.number} of the audit log of '{model.name}' in {root.audit_log}, which the registry has the "
                f"seal of; found none. Restore the file from a backup. Only if there is none, delete the tag {SEAL_TAG} of the "
                "model in MLflow, then adopt again.",
                where=model.name,
            )
    return adopted


class StoredVerdict(NamedTuple):
    """The verdict that `record_verdict` stored for a version.

    Attributes:
        verdict: The verdict with its checks.
        champion_number: Number of the champion that the version was compared with; None if there was none.
        report_path: Path of the HTML report on the machine that made the verdict.
    """

    verdict: Verdict
    champion_number: str | None
    report_path: Path


def load_verdict(version: BundleVersion, root: Root) -> StoredVerdict | None:
    """Loads the verdict on a version from the root, or else from its run; returns None if it was never judged."""
    path = _verdict_folder(version, root) / _VERDICT_FILE
    text = path.read_text() if path.exists() else None
    if text is None and version.run_id is not None:
        text = read_run_text(version.run_id, f"{_GATE_TAG}/{_VERDICT_FILE}", store_uri=root.store_uri)
    parsed = None if text is None else parse_verdict_json(text)
    return (
        None if parsed is None else StoredVerdict(parsed.verdict, parsed.champion_number, path.with_name(_REPORT_FILE))
    )


def record_verdict(
    version: BundleVersion,
    verdict: Verdict,
    result: Backtest,
    root: Root,
    *,
    policy: Policy,
    champion: BundleVersion | None,
) -> Path:
    """Stores a verdict as JSON and HTML under the root and in the run, and its outcome as tags of run and version.

    Returns the path of the HTML report. If the tracking store fails, a warning is logged and the decision stands.
    """
    folder = _verdict_folder(version, root)
    report_path, verdict_path = folder / _REPORT_FILE, folder / _VERDICT_FILE
    champion_number = None if champion is None else champion.number
    atomic.write_text(report_path, render_verdict_html(verdict, result, title=str(version)))
    atomic.write_text(
        verdict_path,
        render_verdict_json(verdict, title=str(version), policy=policy, champion_number=champion_number),
    )
    tags = {
        _GATE_TAG: "promote" if verdict.should_promote else _GATE_REFUSED,
        _FAILED_CHECKS_TAG: ", ".join(verdict.failed_checks) or "none",
    }
    with log_tracking_errors(f"the verdict on {version}"):
        registry = Registry(root.store_uri)
        for key, value in tags.items():
            registry.set_tag(version, key, value)
        if version.run_id is not None:
            append_to_run(
                version.run_id,
                [verdict_path, report_path],
                folder=_GATE_TAG,
                tags=tags,
                store_uri=root.store_uri,
                headline_metrics=_build_headline_metrics(verdict),
            )
    return report_path


def _verdict_folder(version: BundleVersion, root: Root) -> Path:
    return root.verdicts / (version.run_id or version.digest)


def _build_headline_metrics(verdict: Verdict) -> dict[str, float]:
    """Returns the measurements of the gate that are headline metrics of a run."""
    latency_ms = next((check.value for check in verdict.checks if check.name == "latency"), None)
    return {} if latency_ms is None else {"serve/p50_ms": latency_ms}


def find_champion(registry: Registry, name: str) -> BundleVersion | None:
    """Returns the champion of a model, or None if there is none."""
    try:
        return registry.resolve(name, CHAMPION)
    except NoSuchModel:
        return None
