"""The gate's statistics and every way to get past it: luck, a planted gain, and sabotaged challengers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.errors import BadSpec
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.bootstrap import paired_gain
from forecaster.registry.registry import CHALLENGER, CHAMPION
from forecaster.series import Series
from pipelines.promotion.gate import LEVELS, SEASONAL_NAIVE, Evidence, Verdict, judge
from pipelines.promotion.policy import Policy, read_policy
from pipelines.promotion.report import as_html, as_json

HORIZON, SEASON = 12, 12


def world(
    seed: int, *, series: int = 60, windows: int = 3, gain: float = 0.0, alike: float = 0.9, grouped: bool = False
) -> Backtest:
    """A backtest in which the challenger's errors are smaller than the champion's by `gain`; `alike` is their correlation.

    Series differ in size, and their errors are correlated from one window to the next.
    """
    draw = np.random.default_rng(seed)
    shape = (series, windows, HORIZON)
    size = np.exp(draw.normal(size=(series, 1, 1)))
    wave = 3 * np.sin(2 * np.pi * (np.arange(HORIZON) / SEASON + draw.random((series, 1, 1))))
    lingering = draw.normal(size=shape)
    for window in range(1, windows):
        lingering[:, window] = 0.5 * lingering[:, window - 1] + np.sqrt(0.75) * lingering[:, window]
    noise = lingering * size
    actual = 20 * size + wave * size + noise
    own = np.sqrt(1 - alike) * size
    champion = np.sqrt(alike) * noise + own * draw.normal(size=shape)
    challenger = (1 - gain) * (np.sqrt(alike) * noise + own * draw.normal(size=shape))
    start = pd.Timestamp("2026-01-01")
    kinds = [{"region": f"r{number % 6}"} if grouped else {} for number in range(series)]
    quantiles = np.stack([actual + challenger + side * 1.28 * size for side in (-1, 1)], axis=-1)
    return Backtest(
        series=[
            Series(f"s{number}", start, "MS", np.append(np.zeros(24), actual[number].ravel()), {}, kinds[number])
            for number in range(series)
        ],
        cutoffs=[[start] * windows] * series,
        actual=actual,
        forecasts={
            CHALLENGER: actual + challenger,
            CHAMPION: actual + champion,
            SEASONAL_NAIVE: actual + 1.4 * size * draw.normal(size=shape),
        },
        scale=size[:, 0, 0],
        square_scale=size[:, 0, 0] ** 2,
        left_out=(),
        stride=HORIZON,
        levels=LEVELS,
        quantiles={CHALLENGER: quantiles},
    )


SHAPES = [(100, 1), (60, 3), (12, 12), (20, 40), (1, 120)]  # series, windows


@pytest.mark.parametrize(("series", "windows"), SHAPES)
def test_of_challengers_that_are_no_better_hardly_any_is_promoted(series: int, windows: int) -> None:
    """Two hundred A/A draws; the champion test alone, with no margin to lean on."""
    policy = Policy(margin=0.0)
    passed = [judge(world(seed, series=series, windows=windows), policy) for seed in range(200)]
    assert sum(verdict.promote for verdict in passed) <= 4, "two in a hundred"
    assert sum(CHAMPION not in verdict.failed for verdict in passed) <= 4


@pytest.mark.parametrize(("series", "windows"), [*SHAPES, (20, 10)])
def test_a_gain_of_five_percent_is_seen(series: int, windows: int) -> None:
    promoted = [judge(world(seed, series=series, windows=windows, gain=0.05)).promote for seed in range(60)]
    assert np.mean(promoted) >= 0.8


def test_the_standard_error_is_that_of_many_worlds() -> None:
    """What chance does to the gain is known here: it is measured over worlds and held against what one world tells."""
    gains, errors = [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        ours, theirs = (1 + 0.3 * draw.random((80, 1)) for _ in range(2))
        found = paired_gain(ours, theirs, block=1, least=10, confidence=0.99, seed=seed)
        gains.append(found.gain)
        errors.append(np.std(found.draws))
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.25)


def test_what_is_short_is_held_as_it_is_and_what_both_lack_promotes_nobody() -> None:
    ours, theirs = np.full((3, 40), 1.0), np.full((3, 40), 2.0)
    assert paired_gain(ours, theirs, block=4, least=10, confidence=0.99).redrawn == "10 blocks of windows"
    assert paired_gain(ours.T, theirs.T, block=1, least=10, confidence=0.99).redrawn == "40 series"
    assert paired_gain(ours[:1, :1], theirs[:1, :1], block=1, least=2, confidence=0.99).redrawn == "nothing"
    assert (
        paired_gain(ours[:, :12], theirs[:, :12], block=2, least=10, confidence=0.99).redrawn == "6 blocks of windows"
    )
    many = paired_gain(np.ones((10, 40)), np.ones((10, 40)), block=4, least=10, confidence=0.99)
    assert many.redrawn == "10 series and 10 blocks of windows"
    few = judge(world(0, series=4, windows=3, gain=0.9))
    assert "enough" in few.failed
    assert "more --test-windows" in str(few)


def test_windows_that_one_of_them_lacks_count_for_neither() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.random((30, 12)), 1 + draw.random((30, 12))
    whole = paired_gain(ours[:20], theirs[:20], block=2, least=10, confidence=0.99)
    ours[20:], ours[3, 4] = np.nan, np.nan
    holes = paired_gain(ours, theirs, block=2, least=10, confidence=0.99)
    assert (holes.series, holes.windows) == (20, 12)
    assert holes.gain == pytest.approx(whole.gain, abs=0.01)
    assert np.isfinite(holes.draws).all()


def forecast_of(result: Backtest, change: Callable[[np.ndarray], np.ndarray]) -> Backtest:
    """The backtest with a challenger made from the one it had."""
    return replace(result, forecasts={**result.forecasts, CHALLENGER: change(result.forecasts[CHALLENGER].copy())})


def with_nan(forecast: np.ndarray) -> np.ndarray:
    forecast[3, 0, 5] = np.nan
    return forecast


GOOD = world(0, gain=0.1, grouped=True)
SOUND = Evidence(megabytes=1.0, latency_ms=2.0, graph=1e-6, replay=1e-6, exposure_gap=1.2, behind=0)


def terrible_group(forecast: np.ndarray) -> np.ndarray:
    forecast[2::6] += 2.0 * (forecast - GOOD.actual)[2::6]
    forecast[:] = np.where((np.arange(60) % 6 == 2)[:, None, None], forecast, 0.5 * (forecast + GOOD.actual))
    return forecast


SABOTAGED: dict[str, tuple[Backtest, Evidence, str]] = {
    "NaN": (forecast_of(GOOD, with_nan), SOUND, "finite"),
    "constant": (forecast_of(GOOD, lambda one: np.full_like(one, one.mean())), SOUND, SEASONAL_NAIVE),
    "leaked future": (forecast_of(GOOD, lambda one: GOOD.actual + 1e-3 * (one - GOOD.actual)), SOUND, "plausible"),
    "truncated data": (
        forecast_of(GOOD, lambda one: np.where((np.arange(60) < 5)[:, None, None], one, np.nan)),
        SOUND,
        "finite",
    ),
    "shuffled time": (
        forecast_of(GOOD, lambda one: np.random.default_rng(0).permutation(one, axis=2)),
        SOUND,
        SEASONAL_NAIVE,
    ),
    "wrong frequency": (
        forecast_of(GOOD, lambda one: np.repeat(one[..., ::2], 2, axis=2)[..., ::-1]),
        SOUND,
        SEASONAL_NAIVE,
    ),
    "swapped scales": (
        forecast_of(GOOD, lambda one: one * (GOOD.scale[::-1] / GOOD.scale)[:, None, None]),
        SOUND,
        CHAMPION,
    ),
    "stale data": (GOOD, SOUND._replace(behind=12), "fresh"),
    "one terrible group": (forecast_of(GOOD, terrible_group), SOUND, "groups"),
    "collapsed intervals": (
        replace(GOOD, quantiles={CHALLENGER: np.repeat(GOOD.forecasts[CHALLENGER][..., None], 2, axis=-1)}),
        SOUND,
        "coverage",
    ),
    "oversized": (GOOD, SOUND._replace(megabytes=1e4), "size"),
    "slow": (GOOD, SOUND._replace(latency_ms=3e3), "latency"),
    "another answer when served": (GOOD, SOUND._replace(replay=0.05), "replay"),
    "another answer by the graph": (GOOD, SOUND._replace(graph=float("inf")), "graph"),
    "lost in its own output": (GOOD, SOUND._replace(exposure_gap=40.0), "exposure_gap"),
}


@pytest.mark.parametrize("sabotage", SABOTAGED)
def test_a_sabotaged_challenger_is_not_promoted(sabotage: str) -> None:
    result, evidence, caught = SABOTAGED[sabotage]
    verdict = judge(result, None, evidence)
    assert not verdict.promote
    assert caught in verdict.failed, verdict


def test_one_that_nobody_sabotaged_is_promoted() -> None:
    verdict = judge(GOOD, None, SOUND)
    assert verdict.promote, verdict
    assert [check.name for check in verdict.checks if check.passed is None] == [], "every check applied"
    assert {group.name for group in verdict.groups} == {f"region r{number}" for number in range(6)}


def test_one_that_is_bad_where_series_are_small_is_found_without_a_column_of_groups() -> None:
    plain = world(1, gain=0.3)
    small = np.argsort(plain.scale)[:15]

    def worse(forecast: np.ndarray) -> np.ndarray:
        forecast[small] += (forecast - plain.actual)[small]
        return forecast

    verdict = judge(forecast_of(plain, worse), None, SOUND)
    assert verdict.failed == ("groups",)
    assert "quarter 1 of 4 by scale" in str(verdict)


def test_a_verdict_is_the_same_whenever_it_is_given() -> None:
    first, again = (as_json(judge(GOOD, None, SOUND), title="one", policy=Policy()) for _ in range(2))
    assert first == again


def test_the_json_of_a_verdict_holds_every_check_and_the_policy() -> None:
    told = json.loads(as_json(judge(*SABOTAGED["another answer by the graph"][:1]), title="m", policy=Policy()))
    checks = {one["name"]: one for one in told["checks"]}
    assert len(checks) == 13
    assert checks["champion"]["value"] == pytest.approx(0.1, abs=0.05)
    assert checks["champion"]["bound"] == Policy().margin
    assert checks["graph"] == {"name": "graph", "passed": None, "value": None, "bound": 1e-3, "reason": "not measured"}
    assert told["policy"]["confidence"] == 0.99


@pytest.mark.parametrize("name", ["NaN", "one terrible group"])
def test_the_page_of_a_verdict_holds_its_own_pictures_and_loads_nothing(name: str) -> None:
    result, evidence, caught = SABOTAGED[name]
    page = as_html(judge(result, None, evidence), result, title="<sales> version 3")
    assert "&lt;sales&gt; version 3" in page
    assert f'<td>{caught}</td><td class="failed">failed</td>' in page
    assert page.count('src="data:image/png;base64,') == 4
    assert page.count("src=") == 4
    assert "http" not in page


def test_a_policy_is_read_from_yaml_and_what_is_wrong_in_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("margin: 0.2\nleast: 5\n")
    assert read_policy(path) == Policy(margin=0.2, least=5)
    assert read_policy(None) == Policy()
    verdict: Verdict = judge(GOOD, read_policy(path), SOUND)
    assert verdict.failed == (CHAMPION,), "a gain of ten percent is not one of twenty"
    for text, said in (
        ("margins: 1", "margins"),
        ("confidence: 2", "confidence"),
        ("- a", "the file"),
        ("a: [", "YAML"),
    ):
        path.write_text(text)
        with pytest.raises(BadSpec, match=said):
            read_policy(path)
    with pytest.raises(BadSpec, match="cannot be read"):
        read_policy(tmp_path / "none.yaml")
