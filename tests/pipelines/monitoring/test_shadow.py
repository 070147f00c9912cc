"""The shadow test: from a ledger with simulated errors to an outcome, a promotion and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forecaster.errors import InputError, NoSuchModel, RefusedByGate
from forecaster.ledger.records import ForecastRecord, ObservedSeries
from forecaster.ledger.store import Ledger
from forecaster.registry.registry import CHALLENGER, CHAMPION, BundleVersion, Registry
from pipelines.cli import main
from pipelines.monitoring.shadow import judge_shadow, promote_shadow
from pipelines.promotion.promote import StoredVerdict, promote_version, register_bundle, verify_audit_log
from pipelines.promotion.verdict import Check, Verdict
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import train
from tests.pipelines.conftest import make_small_spec

pytestmark = pytest.mark.integration

HORIZON = 4


@pytest.fixture
def two_versions(fresh_root: Root, noise_data: DataSource) -> tuple[BundleVersion, BundleVersion]:
    """A champion and a challenger, as versions 1 and 2."""
    registry = Registry(fresh_root.store_uri)
    versions = [
        register_bundle(train(noise_data, make_small_spec(seed=seed), fresh_root).bundle, fresh_root) for seed in (0, 1)
    ]
    registry.set_alias(versions[0], CHALLENGER)
    promote_version("small", fresh_root, version_number=None, force=True)
    registry.set_alias(versions[1], CHALLENGER)
    return versions[0], versions[1]


def serve_and_observe(
    root: Root,
    versions: tuple[BundleVersion, BundleVersion],
    *,
    origins: int,
    gain: float,
    stride: int = HORIZON,
    seed: int = 0,
) -> None:
    """Records forecasts of both versions for twenty series, and actuals; the challenger's errors are smaller by `gain`."""
    draw = np.random.default_rng(seed)
    ledger = Ledger(f"sqlite:///{root.slot / 'ledger.db'}")
    keys = [f"k{number}" for number in range(20)]
    for origin in range(0, origins * stride, stride):
        timestamps = list(range(origin + 1, origin + 1 + HORIZON))
        for version, share in zip(versions, (1.0, 1 - gain), strict=True):
            errors = draw.normal(size=(len(keys), HORIZON)) * share
            ledger.record(
                [
                    ForecastRecord(
                        1.0, *version[:3], key, None, None, origin, 2.0, timestamps, (10 + error).tolist(), {}
                    )
                    for key, error in zip(keys, errors, strict=True)
                ]
            )
    n_steps = (origins - 1) * stride + HORIZON
    ledger.observe([ObservedSeries(key, list(range(1, n_steps + 1)), [10.0] * n_steps) for key in keys], now=2.0)
    ledger.close()


def test_only_a_challenger_that_proved_better_in_the_shadow_becomes_champion(
    fresh_root: Root, two_versions: tuple[BundleVersion, BundleVersion], tmp_path: Path
) -> None:
    champion, challenger = two_versions
    command = ["shadow", "small", "--root", str(fresh_root.path)]
    serve_and_observe(fresh_root, two_versions, origins=2, gain=0.3)
    early = judge_shadow("small", fresh_root)
    assert (early.outcome, early.test_result.observed, early.n_forecasts) == ("undecided", 2, 40)
    with pytest.raises(RefusedByGate, match="2 origins can be compared; at least 3 are required"):
        promote_shadow(early, fresh_root)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--promote"])
    assert ended.value.code == 3
    assert Registry(fresh_root.store_uri).resolve("small", CHAMPION) == champion

    serve_and_observe(fresh_root, two_versions, origins=30, gain=0.3)
    comparison = judge_shadow("small", fresh_root)
    assert comparison.outcome == "better"
    assert comparison.test_result.gain == pytest.approx(0.3, abs=0.05)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--promote", "--out", str(tmp_path / "outcome.json")])
    assert ended.value.code in (0, None)
    assert Registry(fresh_root.store_uri).resolve("small", CHAMPION) == challenger
    fields = json.loads((tmp_path / "outcome.json").read_text())
    assert (fields["word"], fields["standing"]["observed"]) == ("better", 30)
    audit_report = verify_audit_log(fresh_root, "small")
    assert not audit_report.faults
    assert "shadow test" in str(audit_report.entries[-1])
    with pytest.raises(InputError, match="is both"):
        judge_shadow("small", fresh_root)


def test_overlapping_origins_count_once_and_a_worse_challenger_is_reported(
    fresh_root: Root, two_versions: tuple[BundleVersion, BundleVersion]
) -> None:
    serve_and_observe(fresh_root, two_versions, origins=80, gain=-0.4, stride=1)
    comparison = judge_shadow("small", fresh_root)
    assert (comparison.outcome, comparison.test_result.observed) == ("worse", 20)
    with pytest.raises(SystemExit) as ended:
        main(["shadow", "small", "--root", str(fresh_root.path)])
    assert ended.value.code == 3


def test_a_missing_challenger_is_reported(fresh_root: Root, noise_data: DataSource) -> None:
    with pytest.raises(NoSuchModel):
        judge_shadow("small", fresh_root)
    version = register_bundle(train(noise_data, make_small_spec(), fresh_root).bundle, fresh_root)
    Registry(fresh_root.store_uri).set_alias(version, CHALLENGER)
    with pytest.raises(NoSuchModel, match="Expected a champion"):
        judge_shadow("small", fresh_root)
    with pytest.raises(InputError, match="alpha"):
        judge_shadow("small", fresh_root, alpha=1.5)


def test_failed_gate_checks_block_a_shadow_promotion(
    fresh_root: Root, two_versions: tuple[BundleVersion, BundleVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_and_observe(fresh_root, two_versions, origins=30, gain=0.3)
    comparison = judge_shadow("small", fresh_root)

    def store_verdict(**failed_checks: str) -> None:
        checks = tuple(Check(name, False, None, None, reason) for name, reason in failed_checks.items())
        verdict = StoredVerdict(Verdict(checks), two_versions[0].number, Path("report.html"))
        monkeypatch.setattr("pipelines.monitoring.shadow.load_verdict", lambda *_: verdict)

    store_verdict(champion="the gain might be chance", size="300 MB")
    with pytest.raises(RefusedByGate, match="these checks failed: 300 MB"):
        promote_shadow(comparison, fresh_root)
    store_verdict(champion="the gain might be chance", enough="3 series")
    assert promote_shadow(comparison, fresh_root) == two_versions[1]
