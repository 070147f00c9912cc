"""The trial of a challenger in the shadow: from a ledger with planted errors to a verdict, a promotion and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forecaster.errors import InputError, NoSuchModel, RefusedByGate
from forecaster.ledger.records import Made, Observed
from forecaster.ledger.store import Ledger
from forecaster.registry.registry import CHALLENGER, CHAMPION, Registry, Version
from pipelines.cli import main
from pipelines.monitoring.shadow import judge_shadow, promote_shadow
from pipelines.promotion.gate import Check, Verdict
from pipelines.promotion.promote import Recorded, audited, promote, register
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.training.train import train
from tests.pipelines.conftest import small

HORIZON = 4


@pytest.fixture
def two(fresh: Root, data: Data) -> tuple[Version, Version]:
    """A champion and a challenger."""
    registry = Registry(fresh.store)
    made = [register(train(data, small(seed=seed), fresh).bundle, fresh) for seed in (0, 1)]
    registry.set_alias(made[0], CHALLENGER)
    promote("small", fresh, number=None, force=True)
    registry.set_alias(made[1], CHALLENGER)
    return made[0], made[1]


def serve(
    root: Root, versions: tuple[Version, Version], *, origins: int, better: float, stride: int = HORIZON, seed: int = 0
) -> None:
    """Forecasts of both at some origins of twenty series, and what came; the challenger's errors are smaller by a share."""
    draw = np.random.default_rng(seed)
    ledger = Ledger(f"sqlite:///{root.slot / 'ledger.db'}")
    keys = [f"k{number}" for number in range(20)]
    for origin in range(0, origins * stride, stride):
        stamps = list(range(origin + 1, origin + 1 + HORIZON))
        for version, share in zip(versions, (1.0, 1 - better), strict=True):
            errors = draw.normal(size=(len(keys), HORIZON)) * share
            ledger.record(
                [
                    Made(1.0, *version[:3], key, None, None, origin, 2.0, stamps, (10 + each).tolist(), {})
                    for key, each in zip(keys, errors, strict=True)
                ]
            )
    ends = (origins - 1) * stride + HORIZON
    ledger.observe([Observed(key, list(range(1, ends + 1)), [10.0] * ends) for key in keys], at=2.0)
    ledger.close()


@pytest.mark.slow
def test_a_challenger_that_proved_better_becomes_champion_and_one_that_did_not_does_not(
    fresh: Root, two: tuple[Version, Version], tmp_path: Path
) -> None:
    champion, challenger = two
    asked = ["shadow", "small", "--root", str(fresh.path)]
    serve(fresh, two, origins=2, better=0.3)
    early = judge_shadow("small", fresh)
    assert (early.word, early.standing.observed, early.forecasts) == ("undecided", 2, 40)
    with pytest.raises(RefusedByGate, match="2 origins to compare, 3 are asked for"):
        promote_shadow(early, fresh)
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--promote"])
    assert ended.value.code == 3
    assert Registry(fresh.store).resolve("small", CHAMPION) == champion

    serve(fresh, two, origins=30, better=0.3)
    trial = judge_shadow("small", fresh)
    assert trial.word == "better"
    assert trial.standing.gain == pytest.approx(0.3, abs=0.05)
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--promote", "--out", str(tmp_path / "trial.json")])
    assert ended.value.code in (0, None)
    assert Registry(fresh.store).resolve("small", CHAMPION) == challenger
    told = json.loads((tmp_path / "trial.json").read_text())
    assert (told["word"], told["standing"]["observed"]) == ("better", 30)
    found = audited(fresh, "small")
    assert not found.faults
    assert "in the shadow" in str(found.lines[-1])
    with pytest.raises(InputError, match="is both"):
        judge_shadow("small", fresh)


@pytest.mark.slow
def test_overlapping_origins_count_once_and_a_worse_one_is_called_so(fresh: Root, two: tuple[Version, Version]) -> None:
    serve(fresh, two, origins=80, better=-0.4, stride=1)
    trial = judge_shadow("small", fresh)
    assert (trial.word, trial.standing.observed) == ("worse", 20)
    with pytest.raises(SystemExit) as ended:
        main(["shadow", "small", "--root", str(fresh.path)])
    assert ended.value.code == 3


@pytest.mark.slow
def test_what_is_not_there_is_told(fresh: Root, data: Data) -> None:
    with pytest.raises(NoSuchModel):
        judge_shadow("small", fresh)
    version = register(train(data, small(), fresh).bundle, fresh)
    Registry(fresh.store).set_alias(version, CHALLENGER)
    with pytest.raises(NoSuchModel, match="Expected a champion"):
        judge_shadow("small", fresh)
    with pytest.raises(InputError, match="alpha"):
        judge_shadow("small", fresh, alpha=1.5)


@pytest.mark.slow
def test_what_the_gate_found_besides_is_heeded(
    fresh: Root, two: tuple[Version, Version], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(fresh, two, origins=30, better=0.3)
    trial = judge_shadow("small", fresh)

    def gate(**failed: str) -> None:
        checks = tuple(Check(name, False, None, None, reason) for name, reason in failed.items())
        found = Recorded(Verdict(checks), two[0].number, Path("report.html"))
        monkeypatch.setattr("pipelines.monitoring.shadow.recorded", lambda *_: found)

    gate(champion="the gain might be luck", size="300 MB")
    with pytest.raises(RefusedByGate, match="other faults: 300 MB"):
        promote_shadow(trial, fresh)
    gate(champion="the gain might be luck", enough="3 series")
    assert promote_shadow(trial, fresh) == two[1]
