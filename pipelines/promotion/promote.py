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
from forecaster.frequency import origin, regular
from forecaster.registry.registry import CHALLENGER, CHAMPION, Registry, Version
from forecaster.storage import atomic
from pipelines.promotion.audit_log import Audited, AuditLog
from pipelines.promotion.evidence import megabytes, steps_behind
from pipelines.promotion.gate import SEASONAL_NAIVE, Evidence, Verdict, judge_facts
from pipelines.promotion.policy import Policy
from pipelines.promotion.report import as_html, as_json, from_json
from pipelines.settings import Root
from pipelines.tracking.logger import recording
from pipelines.tracking.run import keep, kept

_GATE, _TABLE, _PAGE = "gate", "verdict.json", "report.html"  # the folder within a run, and its files
_FAILED, _KEEP = "gate_failed", "keep"  # the tag `gate` says promote or keep, this one why not


def register(bundle: Path, root: Root, *, run_id: str | None = None, tags: Mapping[str, str] | None = None) -> Version:
    """Puts a bundle into the registry as a version of its spec's name; one that is there already is answered as it is."""
    forecaster, digest = artifact.load(bundle), artifact.digest(bundle)
    run = run_id or str(forecaster.facts["run_id"])
    steps = forecaster.spec.context
    stamps = regular(origin(forecaster.freq), freq=forecaster.freq, steps=steps + 2)
    example = pd.DataFrame({"unique_id": "example", "ds": stamps[:steps], "y": np.arange(1.0, steps + 1)})
    answer = pd.DataFrame({"unique_id": "example", "ds": stamps[steps:], "mean": [0.0, 0.0]})
    return Registry(root.store).register(
        bundle,
        name=forecaster.spec.name,
        digest=digest,
        run_id=run,
        input_example=example,
        output_example=answer,
        tags=tags,
    )


def fetch(version: Version, root: Root) -> Path:
    """The folder of a registered bundle, copied from the registry the first time it is asked for."""
    folder = root.fetched / version.digest
    return folder if folder.exists() else Registry(root.store).fetch(version, folder)


def promote(
    name: str, root: Root, *, number: str | None, force: bool, reason: str | None = None, policy: Policy | None = None
) -> Version:
    """Makes a version (None: the challenger) the champion.

    What the gate said of it, if it was asked, holds: a version that it refused needs force and a reason, which the audit log
    keeps. Of one that was never judged the bundle's own backtest is asked: unless forced, it must not be worse than seasonal
    naive, the bundle not too large and its data no older than the champion's. `retrain` asks all that the gate asks.
    Raises NoSuchModel, RefusedByGate, InputError where a reason is missing.
    """
    registry = Registry(root.store)
    version = registry.resolve(name, CHALLENGER) if number is None else registry.version(name, number)
    overruled = _overruled(registry, version, force=force, reason=reason)
    base, bundle = champion_of(registry, name), fetch(version, root)
    forecaster = artifact.load(bundle)
    scores = forecaster.facts.get("backtest", {})
    if not force and not scores:
        raise RefusedByGate(
            f"{version} was never tested: it was trained on everything. Promote it with --force.", where=name
        )
    if not force:
        behind = None if base is None else steps_behind(forecaster, artifact.load(fetch(base, root)))
        evidence = Evidence(megabytes=megabytes(bundle), behind=behind)
        verdict = judge_facts(scores[CHALLENGER], scores[SEASONAL_NAIVE], policy or Policy(), evidence)
        if not verdict.promote:
            raise RefusedByGate(
                f"{version} should pass the gate; {'; '.join(verdict.reasons)}. Train a better one, or promote it with "
                "--force.",
                where=name,
            )
    why = f"forced{overruled}" if force else "as good as seasonal naive in its own backtest"
    why += f": {reason}" if reason else ""
    registry.promote(version, base=base, record=AuditLog(root.audit).promoted(version, why))
    return version


def _overruled(registry: Registry, version: Version, *, force: bool, reason: str | None) -> str:
    """Which checks of a stored verdict are set aside, in words for the audit log; nothing where none speaks against it."""
    said = registry.tags(version)
    if said.get(_GATE) != _KEEP:
        return ""
    failed = said.get(_FAILED, "unknown checks")
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


def audited(root: Root, name: str | None) -> Audited:
    """The audit log, of one model or of all, with its faults; a champion that it does not know is one too."""
    found, registry = AuditLog(root.audit).read(), Registry(root.store)
    latest = {line.name: line for line in found.lines if not line.is_local}
    faults = list(found.faults)
    for each in sorted({*latest, *([] if name is None else [name])}):
        champion = champion_of(registry, each)
        said = latest[each].version if each in latest else None
        if champion is not None and champion.number != said:
            faults.append(f"the champion of '{each}' is version {champion.number}; the log says {said or 'nothing'}")
    return Audited(tuple(line for line in found.lines if name in (None, line.name)), tuple(faults))


class Recorded(NamedTuple):
    """What `record` kept of a version.

    Attributes:
        verdict: Its checks.
        against: The number of the champion it was judged against, if there was one.
        page: The page, where it lies or lay on the machine that judged.
    """

    verdict: Verdict
    against: str | None
    page: Path


def recorded(version: Version, root: Root) -> Recorded | None:
    """The verdict on a version, from the root or else from its run; None where it was never judged."""
    table = _verdict_folder(version, root) / _TABLE
    text = table.read_text() if table.exists() else None
    if text is None and version.run_id is not None:
        text = kept(version.run_id, f"{_GATE}/{_TABLE}", uri=root.store)
    found = None if text is None else from_json(text)
    return None if found is None else Recorded(found.verdict, found.against, table.with_name(_PAGE))


def record(
    version: Version, verdict: Verdict, result: Backtest, root: Root, *, policy: Policy, against: Version | None
) -> Path:
    """Keeps a verdict: as JSON and as a page under the root and with the run, in short as tags of run and version.

    Answers the page. A store that fails to keep it is told in the log: the decision stands without it.
    """
    folder = _verdict_folder(version, root)
    page, table = folder / _PAGE, folder / _TABLE
    number = None if against is None else against.number
    atomic.write_text(page, as_html(verdict, result, title=str(version)))
    atomic.write_text(table, as_json(verdict, title=str(version), policy=policy, against=number))
    said = {_GATE: "promote" if verdict.promote else _KEEP, _FAILED: ", ".join(verdict.failed) or "none"}
    with recording(f"the verdict on {version}"):
        registry = Registry(root.store)
        for key, value in said.items():
            registry.tag(version, key, value)
        if version.run_id is not None:
            keep(version.run_id, [table, page], folder=_GATE, tags=said, uri=root.store, headline=_latency(verdict))
    return page


def _verdict_folder(version: Version, root: Root) -> Path:
    return root.verdicts / (version.run_id or version.digest)


def _latency(verdict: Verdict) -> dict[str, float]:
    """What the gate measured, as runs are compared by it."""
    found = next((one.value for one in verdict.checks if one.name == "latency"), None)
    return {} if found is None else {"serve/p50_ms": found}


def champion_of(registry: Registry, name: str) -> Version | None:
    """The champion of a name, if there is one."""
    try:
        return registry.resolve(name, CHAMPION)
    except NoSuchModel:
        return None
