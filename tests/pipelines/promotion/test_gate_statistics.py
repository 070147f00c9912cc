"""The gate's statistics: false promotions, power, and challengers that are sabotaged in one respect each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from forecaster.errors import BadSpec
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.baselines import SEASONAL_NAIVE
from forecaster.evaluation.bootstrap import compute_paired_gain
from forecaster.registry.registry import CHALLENGER, CHAMPION
from forecaster.series import Series
from pipelines.promotion.gate import GATE_LEVELS, judge
from pipelines.promotion.policy import Policy, read_policy
from pipelines.promotion.report import render_verdict_html, render_verdict_json
from pipelines.promotion.verdict import Evidence, Verdict

pytestmark = pytest.mark.integration

HORIZON, SEASON = 12, 12


def simulate_backtest(
    seed: int, *, series: int = 60, windows: int = 3, gain: float = 0.0, correlation: float = 0.9, grouped: bool = False
) -> Backtest:
    """Simulates a backtest in which the challenger's errors are smaller than the champion's by the share `gain`.

    `correlation` is the correlation of the two models' errors. Series differ in size, and the noise is correlated from one
    window to the next.
    """
    draw = np.random.default_rng(seed)
    shape = (series, windows, HORIZON)
    size = np.exp(draw.normal(size=(series, 1, 1)))
    wave = 3 * np.sin(2 * np.pi * (np.arange(HORIZON) / SEASON + draw.random((series, 1, 1))))
    unit_noise = draw.normal(size=shape)
    for window in range(1, windows):
        unit_noise[:, window] = 0.5 * unit_noise[:, window - 1] + np.sqrt(0.75) * unit_noise[:, window]
    noise = unit_noise * size
    actual = 20 * size + wave * size + noise
    independent_size = np.sqrt(1 - correlation) * size
    champion = np.sqrt(correlation) * noise + independent_size * draw.normal(size=shape)
    challenger = (1 - gain) * (np.sqrt(correlation) * noise + independent_size * draw.normal(size=shape))
    start = pd.Timestamp("2026-01-01")
    static_features = [{"region": f"r{number % 6}"} if grouped else {} for number in range(series)]
    spread = size[..., None] * stats.norm.ppf(GATE_LEVELS)
    quantiles = {
        name: (actual + errors)[..., None] + spread for name, errors in ((CHALLENGER, challenger), (CHAMPION, champion))
    }
    return Backtest(
        series=[
            Series(
                f"s{number}", start, "MS", np.append(np.zeros(24), actual[number].ravel()), {}, static_features[number]
            )
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
        excluded_ids=(),
        stride=HORIZON,
        levels=GATE_LEVELS,
        quantiles=quantiles,
    )


def with_scaled_intervals(result: Backtest, factor: float) -> Backtest:
    """Returns the backtest with wider or narrower intervals of the challenger around the same medians."""
    quantiles = result.quantiles[CHALLENGER]
    median = quantiles[..., [GATE_LEVELS.index(0.5)]]
    return replace(result, quantiles={**result.quantiles, CHALLENGER: median + factor * (quantiles - median)})


def with_squeezed_deciles(result: Backtest) -> Backtest:
    """Returns the backtest with all inner deciles of the challenger at its ninth; the 80 % interval stays."""
    quantiles = result.quantiles[CHALLENGER].copy()
    quantiles[..., 1:-1] = quantiles[..., -1:]
    return replace(result, quantiles={**result.quantiles, CHALLENGER: quantiles})


SHAPES = [(100, 1), (60, 3), (12, 12), (20, 40), (1, 120)]  # series, windows


@pytest.mark.parametrize(("series", "windows"), SHAPES)
def test_challengers_that_are_no_better_are_rarely_promoted(series: int, windows: int) -> None:
    """Of two hundred A/A draws, at most 2 % pass the champion check with a margin of zero."""
    policy = Policy(margin=0.0)
    verdicts = [judge(simulate_backtest(seed, series=series, windows=windows), policy) for seed in range(200)]
    assert sum(verdict.should_promote for verdict in verdicts) <= 4, "two in a hundred"
    assert sum(CHAMPION not in verdict.failed_checks for verdict in verdicts) <= 4


@pytest.mark.parametrize(("series", "windows"), SHAPES)
def test_equal_intervals_are_rarely_rejected_and_much_worse_ones_nearly_always(series: int, windows: int) -> None:
    """Of intervals of two equal models at most 2 % are called worse; of twice the width, at least 80 %."""
    policy = Policy(interval_room=0.0)
    results = [simulate_backtest(seed, series=series, windows=windows) for seed in range(60)]
    assert sum("intervals" in judge(result, policy).failed_checks for result in results) <= 1
    wide = [judge(with_scaled_intervals(result, 2.0), policy).failed_checks for result in results[:20]]
    assert np.mean(["intervals" in failed for failed in wide]) >= 0.8


@pytest.mark.parametrize(("series", "windows"), [*SHAPES, (20, 10)])
def test_a_five_percent_gain_is_detected(series: int, windows: int) -> None:
    promoted = [
        judge(simulate_backtest(seed, series=series, windows=windows, gain=0.05)).should_promote for seed in range(60)
    ]
    assert np.mean(promoted) >= 0.8


def test_the_standard_error_equals_that_of_simulations() -> None:
    """The bootstrap standard error of one simulation equals the standard deviation of the gain over simulations."""
    gains, errors = [], []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        ours, theirs = (1 + 0.3 * draw.random((80, 1)) for _ in range(2))
        paired_gain = compute_paired_gain(ours, theirs, block_length=1, min_units=10, confidence=0.99, seed=seed)
        gains.append(paired_gain.gain)
        errors.append(np.std(paired_gain.resampled_gains))
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.25)


def test_missing_forecasts_count_against_neither_and_two_empty_forecasts_promote_nobody() -> None:
    ours, theirs = np.full((3, 40), 1.0), np.full((3, 40), 2.0)
    assert (
        compute_paired_gain(ours, theirs, block_length=4, min_units=10, confidence=0.99).resampled_units
        == "10 blocks of windows"
    )
    assert (
        compute_paired_gain(ours.T, theirs.T, block_length=1, min_units=10, confidence=0.99).resampled_units
        == "40 series"
    )
    assert (
        compute_paired_gain(ours[:1, :1], theirs[:1, :1], block_length=1, min_units=2, confidence=0.99).resampled_units
        == "nothing"
    )
    assert (
        compute_paired_gain(ours[:, :12], theirs[:, :12], block_length=2, min_units=10, confidence=0.99).resampled_units
        == "6 blocks of windows"
    )
    many = compute_paired_gain(np.ones((10, 40)), np.ones((10, 40)), block_length=4, min_units=10, confidence=0.99)
    assert many.resampled_units == "10 series and 10 blocks of windows"
    verdict = judge(simulate_backtest(0, series=4, windows=3, gain=0.9))
    assert "enough" in verdict.failed_checks
    assert "more --test-windows" in str(verdict)


def test_windows_missing_from_either_model_are_excluded() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.random((30, 12)), 1 + draw.random((30, 12))
    complete = compute_paired_gain(ours[:20], theirs[:20], block_length=2, min_units=10, confidence=0.99)
    ours[20:], ours[3, 4] = np.nan, np.nan
    partial = compute_paired_gain(ours, theirs, block_length=2, min_units=10, confidence=0.99)
    assert (partial.series, partial.windows) == (20, 12)
    assert partial.gain == pytest.approx(complete.gain, abs=0.01)
    assert np.isfinite(partial.resampled_gains).all()


def with_changed_challenger(result: Backtest, change: Callable[[np.ndarray], np.ndarray]) -> Backtest:
    """Returns the backtest with changed forecasts of the challenger."""
    return replace(result, forecasts={**result.forecasts, CHALLENGER: change(result.forecasts[CHALLENGER].copy())})


def with_nan(forecast: np.ndarray) -> np.ndarray:
    forecast[3, 0, 5] = np.nan
    return forecast


BETTER_CHALLENGER = simulate_backtest(0, gain=0.1, grouped=True)
SOUND_EVIDENCE = Evidence(
    megabytes=1.0,
    latency_ms=2.0,
    graph_difference=1e-6,
    replay_difference=1e-6,
    exposure_gap=1.2,
    steps_behind=0,
    days_ahead=0.0,
)


def with_bad_group(forecast: np.ndarray) -> np.ndarray:
    forecast[2::6] += 2.0 * (forecast - BETTER_CHALLENGER.actual)[2::6]
    forecast[:] = np.where(
        (np.arange(60) % 6 == 2)[:, None, None], forecast, 0.5 * (forecast + BETTER_CHALLENGER.actual)
    )
    return forecast


SABOTAGED: dict[str, tuple[Backtest, Evidence, str]] = {
    "NaN": (with_changed_challenger(BETTER_CHALLENGER, with_nan), SOUND_EVIDENCE, "finite"),
    "constant": (
        with_changed_challenger(BETTER_CHALLENGER, lambda forecast: np.full_like(forecast, forecast.mean())),
        SOUND_EVIDENCE,
        SEASONAL_NAIVE,
    ),
    "leaked future": (
        with_changed_challenger(
            BETTER_CHALLENGER, lambda forecast: BETTER_CHALLENGER.actual + 1e-3 * (forecast - BETTER_CHALLENGER.actual)
        ),
        SOUND_EVIDENCE,
        "plausible",
    ),
    "truncated data": (
        with_changed_challenger(
            BETTER_CHALLENGER, lambda forecast: np.where((np.arange(60) < 5)[:, None, None], forecast, np.nan)
        ),
        SOUND_EVIDENCE,
        "finite",
    ),
    "shuffled time": (
        with_changed_challenger(
            BETTER_CHALLENGER, lambda forecast: np.random.default_rng(0).permutation(forecast, axis=2)
        ),
        SOUND_EVIDENCE,
        SEASONAL_NAIVE,
    ),
    "wrong frequency": (
        with_changed_challenger(
            BETTER_CHALLENGER, lambda forecast: np.repeat(forecast[..., ::2], 2, axis=2)[..., ::-1]
        ),
        SOUND_EVIDENCE,
        SEASONAL_NAIVE,
    ),
    "swapped scales": (
        with_changed_challenger(
            BETTER_CHALLENGER,
            lambda forecast: forecast * (BETTER_CHALLENGER.scale[::-1] / BETTER_CHALLENGER.scale)[:, None, None],
        ),
        SOUND_EVIDENCE,
        CHAMPION,
    ),
    "stale data": (BETTER_CHALLENGER, SOUND_EVIDENCE._replace(steps_behind=12), "fresh"),
    "one terrible group": (with_changed_challenger(BETTER_CHALLENGER, with_bad_group), SOUND_EVIDENCE, "groups"),
    "collapsed intervals": (
        replace(
            BETTER_CHALLENGER,
            quantiles={
                CHALLENGER: np.repeat(BETTER_CHALLENGER.forecasts[CHALLENGER][..., None], len(GATE_LEVELS), axis=-1)
            },
        ),
        SOUND_EVIDENCE,
        "coverage",
    ),
    "deciles at one bound of an interval with the right coverage": (
        with_squeezed_deciles(BETTER_CHALLENGER),
        SOUND_EVIDENCE,
        "intervals",
    ),
    "oversized": (BETTER_CHALLENGER, SOUND_EVIDENCE._replace(megabytes=1e4), "size"),
    "slow": (BETTER_CHALLENGER, SOUND_EVIDENCE._replace(latency_ms=3e3), "latency"),
    "other forecasts when served": (BETTER_CHALLENGER, SOUND_EVIDENCE._replace(replay_difference=0.05), "replay"),
    "other forecasts by the graph": (
        BETTER_CHALLENGER,
        SOUND_EVIDENCE._replace(graph_difference=float("inf")),
        "graph",
    ),
    "diverges when free running": (BETTER_CHALLENGER, SOUND_EVIDENCE._replace(exposure_gap=40.0), "exposure_gap"),
}


@pytest.mark.parametrize("sabotage", SABOTAGED)
def test_a_sabotaged_challenger_is_not_promoted(sabotage: str) -> None:
    result, evidence, failed_check = SABOTAGED[sabotage]
    verdict = judge(result, None, evidence)
    assert not verdict.should_promote
    assert failed_check in verdict.failed_checks, verdict


def test_a_sound_challenger_is_promoted() -> None:
    verdict = judge(BETTER_CHALLENGER, None, SOUND_EVIDENCE)
    assert verdict.should_promote, verdict
    assert [check.name for check in verdict.checks if check.passed is None] == [], "every check applied"
    assert {group.name for group in verdict.groups} == {f"region r{number}" for number in range(6)}


def test_a_challenger_that_fails_on_small_series_is_detected_without_a_group_column() -> None:
    without_groups = simulate_backtest(1, gain=0.3)
    small = np.argsort(without_groups.scale)[:15]

    def with_bad_small_series(forecast: np.ndarray) -> np.ndarray:
        forecast[small] += (forecast - without_groups.actual)[small]
        return forecast

    verdict = judge(with_changed_challenger(without_groups, with_bad_small_series), None, SOUND_EVIDENCE)
    assert verdict.failed_checks == ("groups",)
    assert "quarter 1 of 4 by scale" in str(verdict)


def test_a_verdict_is_deterministic() -> None:
    first, second = (
        render_verdict_json(judge(BETTER_CHALLENGER, None, SOUND_EVIDENCE), title="one", policy=Policy())
        for _ in range(2)
    )
    assert first == second


def test_the_json_of_a_verdict_holds_every_check_and_the_policy() -> None:
    fields = json.loads(
        render_verdict_json(judge(*SABOTAGED["other forecasts by the graph"][:1]), title="m", policy=Policy())
    )
    checks = {check["name"]: check for check in fields["checks"]}
    assert len(checks) == 15
    assert checks["champion"]["value"] == pytest.approx(0.1, abs=0.05)
    assert checks["champion"]["bound"] == Policy().margin
    assert checks["graph"] == {"name": "graph", "passed": None, "value": None, "bound": 1e-3, "reason": "not measured"}
    assert fields["policy"]["confidence"] == 0.99


@pytest.mark.parametrize("name", ["NaN", "one terrible group"])
def test_the_html_report_of_a_verdict_is_self_contained(name: str) -> None:
    result, evidence, failed_check = SABOTAGED[name]
    page = render_verdict_html(judge(result, None, evidence), result, title="<sales> version 3")
    assert "&lt;sales&gt; version 3" in page
    assert f'<td>{failed_check}</td><td class="failed">failed</td>' in page
    assert page.count('src="data:image/png;base64,') == 4
    assert page.count("src=") == 4
    assert "http" not in page


def test_a_policy_is_read_from_yaml_and_errors_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("margin: 0.2\nleast: 5\n")
    assert read_policy(path) == Policy(margin=0.2, least=5)
    assert read_policy(None) == Policy()
    verdict: Verdict = judge(BETTER_CHALLENGER, read_policy(path), SOUND_EVIDENCE)
    assert verdict.failed_checks == (CHAMPION,), "a gain of ten percent is below the margin of twenty"
    for text, message in (
        ("margins: 1", "margins"),
        ("confidence: 2", "confidence"),
        ("- a", "the file"),
        ("a: [", "YAML"),
    ):
        path.write_text(text)
        with pytest.raises(BadSpec, match=message):
            read_policy(path)
    with pytest.raises(BadSpec, match="cannot be read"):
        read_policy(tmp_path / "none.yaml")
