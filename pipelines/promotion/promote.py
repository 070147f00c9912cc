"""Bundles on their way into the registry and back out of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.bundle import artifact
from forecaster.errors import InputError, NoSuchModel, RefusedByGate
from forecaster.evaluation.backtest import Backtest
from forecaster.frequency import build_timestamps, synthetic_start
from forecaster.registry.registry import CHALLENGER, CHAMPION, BundleVersion, Registry
from forecaster.storage import atomic
from pipelines.promotion.audit_log import AuditLog, AuditReport
from pipelines.promotion.evidence import compute_megabytes, count_steps_behind
from pipelines.promotion.gate import SEASONAL_NAIVE, Evidence, Verdict, judge_reported_scores
from pipelines.promotion.policy import Policy
from pipelines.promotion.report import parse_verdict_json, render_verdict_html, render_verdict_json
from pipelines.settings import Root
from pipelines.tracking.logger import log_tracking_errors
from pipelines.tracking.run import append_to_run, read_run_text

_GATE_TAG, _VERDICT_FILE, _REPORT_FILE = "gate", "verdict.json", "report.html"  # the folder within a run, and its files
_FAILED_CHECKS_TAG, _GATE_REFUSED = "gate_failed", "keep"  # the tag `gate` says promote or keep, this one why not


def register_bundle(
    bundle: Path, root: Root, *, run_id: str | None = None, tags: Mapping[str, str] | None = None
) -> BundleVersion:
    """Puts a bundle into the registry as a version of its spec's name; one that is there already is answered as it is."""
    forecaster, digest = artifact.load_bundle(bundle), artifact.compute_bundle_digest(bundle)
    run = run_id or str(forecaster.facts["run_id"])
    steps = forecaster.spec.context
    stamps = build_timestamps(synthetic_start(forecaster.freq), freq=forecaster.freq, steps=steps + 2)
    example = pd.DataFrame({"unique_id": "example", "ds": stamps[:steps], "y": np.arange(1.0, steps + 1)})
    answer = pd.DataFrame({"unique_id": "example", "ds": stamps[steps:], "mean": [0.0, 0.0]})
    return Registry(root.store_uri).register(
        bundle,
        name=forecaster.spec.name,
        digest=digest,
        run_id=run,
        input_example=example,
        output_example=answer,
        tags=tags,
    )


def fetch_bundle(version: BundleVersion, root: Root) -> Path:
    """The folder of a registered bundle, copied from the registry the first time it is asked for."""
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
) -> BundleVersion:
    """Makes a version (None: the challenger) the champion.

    What the gate said of it, if it was asked, holds: a version that it refused needs force and a reason, which the audit log
    keeps. Of one that was never judged the bundle's own backtest is asked: unless forced, it must not be worse than seasonal
    naive, the bundle not too large and its data no older than the champion's. `retrain` asks all that the gate asks.
    Raises NoSuchModel, RefusedByGate, InputError where a reason is missing.
    """
    registry = Registry(root.store_uri)
    version = (
        registry.resolve(name, CHALLENGER) if version_number is None else registry.get_version(name, version_number)
    )
    overruled = _describe_overruled_checks(registry, version, force=force, reason=reason)
    base, bundle = find_champion(registry, name), fetch_bundle(version, root)
    forecaster = artifact.load_bundle(bundle)
    scores = forecaster.facts.get("backtest", {})
    if not force and not scores:
        raise RefusedByGate(
            f"{version} was never tested: it was trained on everything. Promote it with --force.", where=name
        )
    if not force:
        behind = (
            None if base is None else count_steps_behind(forecaster, artifact.load_bundle(fetch_bundle(base, root)))
        )
        evidence = Evidence(megabytes=compute_megabytes(bundle), steps_behind=behind)
        verdict = judge_reported_scores(scores[CHALLENGER], scores[SEASONAL_NAIVE], policy or Policy(), evidence)
        if not verdict.should_promote:
            raise RefusedByGate(
                f"{version} should pass the gate; {'; '.join(verdict.reasons)}. Train a better one, or promote it with "
                "--force.",
                where=name,
            )
    why = f"forced{overruled}" if force else "as good as seasonal naive in its own backtest"
    why += f": {reason}" if reason else ""
    registry.promote(
        version, expected_champion=base, on_promoted=AuditLog(root.audit_log).make_promotion_recorder(version, why)
    )
    return version


def _describe_overruled_checks(registry: Registry, version: BundleVersion, *, force: bool, reason: str | None) -> str:
    """Which checks of a stored verdict are set aside, in words for the audit log; nothing where none speaks against it."""
    said = registry.get_tags(version)
    if said.get(_GATE_TAG) != _GATE_REFUSED:
        return ""
    failed = said.get(_FAILED_CHECKS_TAG, "unknown checks")
    if not force:
        raise RefusedByGate(
            f"{version} should have passed the gate; it was judged and refused ({failed}). Train a better one, or promote it "
            "with --force --reason WHY.",
            where=version.name,
        )
    if not (reason or "").strip():
        raise InputError(
            f"Expected a reason to set the gate's verdict on {version} aside ({failed}); found none. Say it with --reason: the "
            "audit log keeps it.",
            where="reason",
        )
    return f" against the gate ({failed})"


def verify_audit_log(root: Root, name: str | None) -> AuditReport:
    """The audit log, of one model or of all, with its faults; a champion that it does not know is one too."""
    found, registry = AuditLog(root.audit_log).read_entries(), Registry(root.store_uri)
    latest = {line.name: line for line in found.entries if not line.is_local}
    faults = list(found.faults)
    for each in sorted({*latest, *([] if name is None else [name])}):
        champion = find_champion(registry, each)
        said = latest[each].version if each in latest else None
        if champion is not None and champion.number != said:
            faults.append(f"the champion of '{each}' is version {champion.number}; the log says {said or 'nothing'}")
    return AuditReport(tuple(line for line in found.entries if name in (None, line.name)), tuple(faults))


class StoredVerdict(NamedTuple):
    """What `record_verdict` kept of a version.

    Attributes:
        verdict: Its checks.
        against: The number of the champion it was judged against, if there was one.
        page: The page, where it lies or lay on the machine that judged.
    """

    verdict: Verdict
    champion_number: str | None
    report_path: Path


def load_verdict(version: BundleVersion, root: Root) -> StoredVerdict | None:
    """The verdict on a version, from the root or else from its run; None where it was never judged."""
    table = _verdict_folder(version, root) / _VERDICT_FILE
    text = table.read_text() if table.exists() else None
    if text is None and version.run_id is not None:
        text = read_run_text(version.run_id, f"{_GATE_TAG}/{_VERDICT_FILE}", store_uri=root.store_uri)
    found = None if text is None else parse_verdict_json(text)
    return None if found is None else StoredVerdict(found.verdict, found.champion_number, table.with_name(_REPORT_FILE))


def record_verdict(
    version: BundleVersion,
    verdict: Verdict,
    result: Backtest,
    root: Root,
    *,
    policy: Policy,
    champion: BundleVersion | None,
) -> Path:
    """Keeps a verdict: as JSON and as a page under the root and with the run, in short as tags of run and version.

    Answers the page. A store that fails to keep it is told in the log: the decision stands without it.
    """
    folder = _verdict_folder(version, root)
    page, table = folder / _REPORT_FILE, folder / _VERDICT_FILE
    number = None if champion is None else champion.number
    atomic.write_text(page, render_verdict_html(verdict, result, title=str(version)))
    atomic.write_text(table, render_verdict_json(verdict, title=str(version), policy=policy, champion_number=number))
    said = {
        _GATE_TAG: "promote" if verdict.should_promote else _GATE_REFUSED,
        _FAILED_CHECKS_TAG: ", ".join(verdict.failed_checks) or "none",
    }
    with log_tracking_errors(f"the verdict on {version}"):
        registry = Registry(root.store_uri)
        for key, value in said.items():
            registry.set_tag(version, key, value)
        if version.run_id is not None:
            append_to_run(
                version.run_id,
                [table, page],
                folder=_GATE_TAG,
                tags=said,
                store_uri=root.store_uri,
                headline_metrics=_build_headline_metrics(verdict),
            )
    return page


def _verdict_folder(version: BundleVersion, root: Root) -> Path:
    return root.verdicts / (version.run_id or version.digest)


def _build_headline_metrics(verdict: Verdict) -> dict[str, float]:
    """What the gate measured, as runs are compared by it."""
    found = next((one.value for one in verdict.checks if one.name == "latency"), None)
    return {} if found is None else {"serve/p50_ms": found}


def find_champion(registry: Registry, name: str) -> BundleVersion | None:
    """The champion of a name, if there is one."""
    try:
        return registry.resolve(name, CHAMPION)
    except NoSuchModel:
        return None
