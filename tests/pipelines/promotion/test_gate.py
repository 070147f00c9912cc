"""The gate as a pure function of raw forecasts, on errors given by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from forecaster.data.frames.panel import to_panel
from forecaster.errors import ForecasterError
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import seasonal_naive
from forecaster.series import Forecast, Series
from forecaster.training.model_card import compute_reliable_horizon, replace_nonfinite
from pipelines.promotion.evidence import find_frequency_difference
from pipelines.promotion.gate import GATE_LEVELS, judge, judge_reported_scores
from pipelines.promotion.policy import Policy
from pipelines.promotion.verdict import Check, Evidence, Verdict
from tests.factories import make_fitted_model, make_spec

SHAPE = (3, 2, 4)  # series, windows, steps ahead
SMALL_SAMPLE_POLICY = Policy(least=3)


def make_backtest(*, scale: float = 1.0, actual: Any = 0.0, **errors: Any) -> Backtest:
    """Builds a backtest whose actuals are zero by default, so that a forecast equals its error."""
    series, windows, _ = SHAPE
    start = pd.Timestamp("2026-01-01")
    return Backtest(
        series=[Series(f"s{number}", start, "h", np.zeros(20)) for number in range(series)],
        cutoffs=[[start] * windows] * series,
        actual=np.broadcast_to(np.asarray(actual, dtype=float), SHAPE).copy(),
        forecasts={
            name: np.broadcast_to(np.asarray(error, dtype=float), SHAPE).copy() for name, error in errors.items()
        },
        scale=np.full(series, scale),
        square_scale=np.full(series, scale),
        excluded_ids=[],
        stride=4,
    )


@pytest.mark.parametrize(
    ("errors", "promoted"),
    [
        ({"challenger": 1.0, "seasonal_naive": 2.0}, True),
        ({"challenger": 2.0, "seasonal_naive": 2.0}, True),
        ({"challenger": 2.1, "seasonal_naive": 2.0}, False),
        ({"challenger": 1.0, "seasonal_naive": 2.0, "champion": 1.5}, True),
        ({"challenger": 1.5, "seasonal_naive": 2.0, "champion": 1.5}, False),
        ({"challenger": 1.6, "seasonal_naive": 2.0, "champion": 1.5}, False),
        ({"challenger": 2.5, "seasonal_naive": 2.0, "champion": 3.0}, False),
    ],
)
def test_a_challenger_must_match_seasonal_naive_and_beat_the_champion(errors: dict[str, float], promoted: bool) -> None:
    verdict = judge(make_backtest(**errors), SMALL_SAMPLE_POLICY)
    assert verdict.should_promote is promoted
    outcomes = {check.name: check.passed for check in verdict.checks if check.name in ("champion", "seasonal_naive")}
    assert (outcomes["champion"] is None) == ("champion" not in errors)
    assert promoted == (set(outcomes.values()) <= {True, None})


def test_a_challenger_that_the_last_value_beats_is_not_promoted() -> None:
    errors = {"challenger": 1.0, "seasonal_naive": 2.0}
    verdict = judge(make_backtest(**errors, last_value=0.9))
    assert verdict.failed_checks == ("last_value",)
    assert str(verdict) == "keep the current model: MASE 1.0000 does not beat the last value's 0.9000"
    promoted = judge(make_backtest(**errors, last_value=1.1))
    assert promoted.should_promote
    assert "beats seasonal naive's 2.0000; MASE 1.0000 beats the last value's 1.1000" in str(promoted)
    assert judge(make_backtest(**errors, last_value=0.9), Policy(naive_room=0.2)).should_promote
    assert judge(make_backtest(**errors)).should_promote, "data without a season have no other last value"


def test_reported_scores_of_the_last_value_are_compared_where_a_bundle_has_them() -> None:
    scores = {"challenger": {"mase": 0.9, "mae": 1.0}, "seasonal_naive": {"mase": 1.0, "mae": 2.0}}
    assert judge_reported_scores(scores, Policy(), Evidence()).should_promote, "a bundle of an earlier version"
    worse = judge_reported_scores(scores | {"last_value": {"mase": 0.8, "mae": 0.5}}, Policy(), Evidence())
    assert worse.failed_checks == ("last_value",)
    unscored = {"mase": None, "mae": None}
    nothing = judge_reported_scores({"challenger": unscored, "seasonal_naive": unscored}, Policy(), Evidence())
    assert nothing.failed_checks == ("seasonal_naive",)
    assert "no score to compare with that of seasonal naive" in str(nothing)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_non_finite_value_rejects_a_challenger(value: float) -> None:
    errors = np.zeros(SHAPE)
    errors[1, 0, 2] = value
    verdict = judge(make_backtest(challenger=errors, seasonal_naive=2.0))
    assert not verdict.should_promote
    assert "1 of 24" in str(verdict)


def test_missing_actuals_are_ignored() -> None:
    actual, errors = np.zeros(SHAPE), np.full(SHAPE, 1.0)
    actual[0, 0, 0], errors[0, 0, 0] = np.nan, 1000.0
    assert judge(make_backtest(actual=actual, challenger=errors, seasonal_naive=2.0)).should_promote
    assert not judge(make_backtest(challenger=errors, seasonal_naive=2.0)).should_promote, "an observed step counts"


def test_a_backtest_without_observations_promotes_nobody() -> None:
    verdict = judge(make_backtest(actual=np.nan, challenger=0.0, seasonal_naive=1.0))
    assert not verdict.should_promote
    assert "no observed value" in str(verdict)


def test_windows_without_a_champion_forecast_are_excluded() -> None:
    challenger, champion = np.full(SHAPE, 1.0), np.full(SHAPE, 1.5)
    champion[:, 0], challenger[:, 0] = np.nan, 50.0
    assert judge(
        make_backtest(challenger=challenger, champion=champion, seasonal_naive=2.0), SMALL_SAMPLE_POLICY
    ).should_promote


def test_series_without_a_scale_are_judged_by_absolute_errors() -> None:
    assert judge(make_backtest(scale=np.nan, challenger=1.0, seasonal_naive=2.0)).should_promote
    assert not judge(make_backtest(scale=np.nan, challenger=3.0, seasonal_naive=2.0)).should_promote


def test_on_constant_series_only_an_exact_challenger_matches_seasonal_naive() -> None:
    timestamps = pd.date_range("2026-01-01", periods=30, freq="D")
    panel = to_panel(pd.DataFrame({"unique_id": "a", "ds": timestamps, "y": 5.0}))
    naive = seasonal_naive(7)

    def is_promoted(shift: float) -> bool:
        def predict_shifted(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
            shifted: list[Forecast | ForecasterError] = []
            for forecast in naive(series, horizon):
                assert isinstance(forecast, Forecast)
                shifted.append(Forecast(forecast.id, forecast.ds, forecast.mean + shift))
            return shifted

        return judge(
            backtest(panel, {"challenger": predict_shifted, "seasonal_naive": naive}, horizon=3, windows=2, season=7)
        ).should_promote

    assert is_promoted(0.0)
    assert not is_promoted(0.01)


def test_a_long_series_does_not_outvote_a_short_one_by_its_scale() -> None:
    result = make_backtest(
        challenger=np.array([10.0, 1.0, 1.0])[:, None, None], seasonal_naive=np.array([11.0, 0.5, 0.5])[:, None, None]
    )
    assert not judge(Backtest(**{**vars(result), "scale": np.array([100.0, 1.0, 1.0])})).should_promote
    assert judge(result).should_promote is True


@pytest.mark.parametrize(
    ("challenger", "naive", "horizon"),
    [
        ([1, 1, 1, 1], [1, 1, 1, 1], 4),
        ([1, 1, 2, 0], [1, 1, 1, 1], 2),
        ([2, 0, 0, 0], [1, 1, 1, 1], 0),
        ([0, 0, 0, 2], [1, 1, 1, 1], 3),
    ],
)
def test_the_reliable_horizon_ends_before_the_first_worse_step(
    challenger: list[float], naive: list[float], horizon: int
) -> None:
    assert compute_reliable_horizon(make_backtest(challenger=challenger, seasonal_naive=naive)) == horizon


def test_a_step_without_measurements_is_not_reliable() -> None:
    actual = np.zeros(SHAPE)
    actual[:, :, 2] = np.nan
    assert compute_reliable_horizon(make_backtest(actual=actual, challenger=0.0, seasonal_naive=1.0)) == 2
    assert compute_reliable_horizon(make_backtest(scale=np.nan, challenger=0.0, seasonal_naive=1.0)) == 0


def test_undefined_scores_are_null_in_the_manifest() -> None:
    assert replace_nonfinite({"a": 1.5, "b": float("nan"), "c": float("inf")}) == {"a": 1.5, "b": None, "c": None}


@pytest.mark.parametrize("champion", [np.nan, np.array([1.0, 2.0, 3.0, np.nan])])
def test_a_champion_that_cannot_be_measured_blocks_a_promotion(champion: Any) -> None:
    differences = ("the data have the frequency 'D', the model 'h' (3 of 3 series)",)
    actual = np.where(np.isfinite(champion), np.nan, 0.0)  # no step has both an actual and a forecast of the champion
    result = make_backtest(actual=actual, challenger=0.1, seasonal_naive=1.0, champion=champion)
    verdict = judge(result, SMALL_SAMPLE_POLICY, Evidence(champion_differences=differences))
    assert not verdict.should_promote
    assert "champion" in verdict.failed_checks
    for phrase in ("not comparable", "'D'", "'h'", "--force --reason", "name of its own"):
        assert phrase in str(verdict)
    assert "no window has forecasts of both" in str(judge(result, SMALL_SAMPLE_POLICY))
    first = judge(make_backtest(challenger=0.1, seasonal_naive=1.0), SMALL_SAMPLE_POLICY)
    assert first.should_promote, "a first model has no champion to be compared with"


def test_a_version_that_was_never_judged_is_not_promoted_over_a_champion_of_another_frequency() -> None:
    scores = {"challenger": {"mase": 0.5, "mae": 1.0}, "seasonal_naive": {"mase": 1.0, "mae": 2.0}}
    daily, hourly = (dataclasses.replace(make_fitted_model(make_spec()), freq=freq) for freq in ("D", "h"))
    differences = find_frequency_difference(daily, hourly)
    verdict = judge_reported_scores(scores, Policy(), Evidence(champion_differences=differences))
    assert verdict.failed_checks == ("champion",)
    assert "frequency 'D', the champion 'h'" in str(verdict)
    assert judge_reported_scores(scores, Policy(), Evidence()).should_promote
    assert find_frequency_difference(daily, daily) == ()


SOUND = {"challenger": 1.0, "seasonal_naive": 2.0, "champion": 1.5}


def find_check(verdict: Verdict, name: str) -> Check:
    [check] = [check for check in verdict.checks if check.name == name]
    return check


def test_data_that_end_after_the_present_reject_a_challenger_unless_declared() -> None:
    ahead = Evidence(days_ahead=73_000.0)
    for errors in (SOUND, {name: SOUND[name] for name in ("challenger", "seasonal_naive")}):
        verdict = judge(make_backtest(**errors), SMALL_SAMPLE_POLICY, ahead)
        assert verdict.failed_checks == ("clock",), "also a first model"
        assert "7.3e+04" in str(verdict)
        assert "Correct the timestamps" in str(verdict)
    assert judge(make_backtest(**SOUND), Policy(least=3, days_ahead=1e6), ahead).should_promote
    assert judge(make_backtest(**SOUND), SMALL_SAMPLE_POLICY, Evidence(days_ahead=0.9)).should_promote
    assert find_check(judge(make_backtest(**SOUND)), "clock").passed is None, "integer timestamps have no clock"


def test_a_champion_whose_data_end_after_the_present_does_not_make_right_data_stale() -> None:
    stale = Evidence(days_ahead=0.0, champion_days_ahead=0.0, steps_behind=1000)
    assert judge(make_backtest(**SOUND), SMALL_SAMPLE_POLICY, stale).failed_checks == ("fresh",)
    verdict = judge(make_backtest(**SOUND), SMALL_SAMPLE_POLICY, stale._replace(champion_days_ahead=73_000.0))
    assert verdict.should_promote
    assert "73000 days after the present" in find_check(verdict, "fresh").reason


@pytest.mark.parametrize("scale", [np.nan, 1.0])  # the feed was dead always, or has died
def test_a_dead_feed_replaces_no_champion(scale: float) -> None:
    dead = {"challenger": 5.0, "seasonal_naive": 5.0, "champion": 4.7}
    verdict = judge(make_backtest(actual=5.0, scale=scale, **dead), SMALL_SAMPLE_POLICY)
    assert verdict.failed_checks == ("enough", "plausible")
    for phrase in ("the feed repeats itself", "as on a dead feed", "Check the source"):
        assert phrase in str(verdict)
    del dead["champion"]
    assert judge(make_backtest(actual=5.0, scale=scale, **dead), SMALL_SAMPLE_POLICY).should_promote, "a first model"


def test_series_that_repeat_themselves_do_not_count_towards_enough() -> None:
    naive = np.zeros(SHAPE)
    naive[0] = 3.0
    verdict = judge(make_backtest(challenger=0.5, champion=1.0, seasonal_naive=naive), SMALL_SAMPLE_POLICY)
    assert find_check(verdict, "enough").reason.startswith("1 series in 2 windows")
    assert "enough" in verdict.failed_checks


def test_rounding_errors_are_no_gain() -> None:
    exact = make_backtest(challenger=0.0, champion=1e-9, seasonal_naive=1.0)
    check = find_check(judge(exact, Policy(least=3, group_least=1)), "champion")
    assert (check.passed, check.value) == (False, 0.0)
    worse = judge(make_backtest(challenger=0.1, champion=0.0, seasonal_naive=1.0), Policy(least=3, group_least=1))
    assert worse.gain is not None
    gains = [worse.gain.gain, *worse.gain.resampled_gains, *(group.gain for group in worse.groups)]
    assert np.isfinite(gains).all()
    assert max(gains) < -1e4


NUM_SERIES = 20


def make_interval_backtest(*, scale: Any = 1.0, deviation: float = 0.9, **spreads: Any) -> Backtest:
    """Builds a backtest of noise with Gaussian quantiles around the forecasts.

    Args:
        scale: Scale of each series, which its noise is proportional to.
        deviation: Standard deviation of the challenger's errors; that of the champion's is 1.
        spreads: By model, the standard deviation that its quantiles state, in units of the scale, of each series or of all.
    """
    shape = (NUM_SERIES, *SHAPE[1:])
    scales = np.broadcast_to(np.asarray(scale, dtype=float), (NUM_SERIES,)).copy()
    noise = scales[:, None, None] * np.random.default_rng(0).normal(size=shape)
    forecasts = {
        "challenger": deviation * noise,
        "champion": noise,
        "seasonal_naive": 2 * scales[:, None, None] + 0 * noise,
    }
    quantiles = {
        name: forecasts[name][..., None]
        + (scales * np.asarray(spread, dtype=float))[:, None, None, None] * stats.norm.ppf(GATE_LEVELS)
        for name, spread in spreads.items()
    }
    [series], [cutoffs] = make_backtest(challenger=0.0).series[:1], [make_backtest(challenger=0.0).cutoffs[0]]
    return Backtest(
        series=[dataclasses.replace(series, id=f"s{number}") for number in range(NUM_SERIES)],
        cutoffs=[cutoffs] * NUM_SERIES,
        actual=np.zeros(shape),
        forecasts=forecasts,
        scale=scales,
        square_scale=scales**2,
        excluded_ids=[],
        stride=SHAPE[2],
        levels=GATE_LEVELS,
        quantiles=quantiles,
    )


@pytest.mark.parametrize(("spread", "passed"), [(0.9, True), (1.0, True), (4.0, False), (1e-3, False)])
def test_intervals_that_are_clearly_worse_around_the_same_means_are_refused(spread: float, passed: bool) -> None:
    verdict = judge(make_interval_backtest(challenger=spread, champion=1.0))
    check = find_check(verdict, "intervals")
    assert check.passed is passed, check
    assert ("intervals" in verdict.failed_checks) is not passed
    assert ("worse than the champion's" in check.reason) is not passed
    assert check.bound == Policy().interval_room


def test_equal_intervals_pass_and_a_policy_may_leave_room() -> None:
    equal = find_check(judge(make_interval_backtest(deviation=1.0, challenger=1.0, champion=1.0)), "intervals")
    assert (equal.passed, equal.value) == (True, 0.0)
    worse = make_interval_backtest(challenger=4.0, champion=1.0)
    assert find_check(judge(worse, Policy(interval_room=10.0)), "intervals").passed is True


def test_quantile_losses_are_compared_in_units_of_the_scale() -> None:
    """Nearly the whole loss in units of the data is that of one large series, whose intervals are equal."""
    scale = np.where(np.arange(NUM_SERIES) == 0, 1e6, 1.0)
    spreads = np.where(np.arange(NUM_SERIES) == 0, 1.0, 4.0)
    check = find_check(
        judge(make_interval_backtest(scale=scale, deviation=1.0, challenger=spreads, champion=1.0)), "intervals"
    )
    assert check.passed is False
    without_scale = dataclasses.replace(
        make_interval_backtest(deviation=1.0, challenger=4.0, champion=1.0), scale=np.full(NUM_SERIES, np.nan)
    )
    assert find_check(judge(without_scale), "intervals").passed is False, "plain losses, as plain errors"


def test_the_interval_check_needs_quantiles_of_both_models() -> None:
    for spreads, phrase in (
        ({"challenger": 1.0}, "no quantiles of the champion"),
        ({"champion": 1.0}, "no quantiles of the challenger"),
        ({}, "no quantiles of the challenger and the champion"),
    ):
        check = find_check(judge(make_interval_backtest(**spreads)), "intervals")
        assert check.passed is None
        assert phrase in check.reason
    first = make_interval_backtest(challenger=1.0)
    forecasts = {name: values for name, values in first.forecasts.items() if name != "champion"}
    first = dataclasses.replace(first, forecasts=forecasts)
    assert find_check(judge(first), "intervals").reason == "there is no champion"
    unmeasured = find_check(judge(make_interval_backtest(challenger=1.0, champion=np.nan)), "intervals")
    assert unmeasured.passed is None
    assert "too few" in unmeasured.reason
