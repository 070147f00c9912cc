"""The check of the gate that compares a challenger with the pretrained network, on errors given by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.promotion.gate import judge, judge_reported_scores
from pipelines.promotion.policy import Policy
from pipelines.promotion.verdict import Check, Evidence, Verdict
from tests.pipelines.promotion.test_gate import SHAPE, make_backtest

FEW_UNITS = Policy(least=3)  # the backtests have three series in two windows
LARGE = {"seasonal_naive": 9.0, "last_value": 9.0}


def find_check(verdict: Verdict) -> Check:
    [check] = [check for check in verdict.checks if check.name == "zero_shot"]
    return check


def spread_errors(mean: float, spread: float) -> Any:
    """Returns errors of three series around a mean, from which the pretrained network's differ by chance."""
    return mean + spread * np.array([-1.0, 0.0, 1.0])[:, None, None]


def test_a_challenger_that_is_clearly_worse_is_rejected_with_advice() -> None:
    verdict = judge(make_backtest(challenger=1.2, zero_shot=1.0, **LARGE), FEW_UNITS)
    assert verdict.failed_checks == ("zero_shot",)
    assert str(verdict).startswith(
        "keep the current model: MASE 1.2000 is clearly worse than the pretrained network's 1.0000 (20.0 % larger, p = 0)"
    )
    assert "Train with a preset" in str(verdict)
    assert "forecaster serve base" in str(verdict)
    assert find_check(verdict).value == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("challenger", "zero_shot", "words"),
    [
        (0.9, 1.0, "beats the pretrained network's 1.0000 (10.0 % smaller"),
        (1.0, 1.0, "is not clearly worse than the pretrained network's 1.0000 (0.0 % larger"),
        (spread_errors(1.2, 0.0), spread_errors(1.0, 0.9), "is not clearly worse than"),
    ],
)
def test_a_challenger_that_is_better_or_worse_by_chance_only_passes(
    challenger: Any, zero_shot: Any, words: str
) -> None:
    verdict = judge(make_backtest(challenger=challenger, zero_shot=zero_shot, **LARGE), FEW_UNITS)
    assert verdict.should_promote, verdict
    assert words in find_check(verdict).reason
    assert words in str(verdict), "the reason of a promotion names it beside the naive baselines"


def test_an_error_that_is_larger_by_half_is_clear_whatever_its_spread() -> None:
    diverged = np.full(SHAPE, 1.0)
    diverged[0, 0] = 9.0
    verdict = judge(make_backtest(challenger=diverged, zero_shot=1.0, **LARGE), FEW_UNITS)
    assert verdict.failed_checks == ("zero_shot",)
    assert float(str(find_check(verdict).reason).split("p = ")[1].split(")")[0]) > 0.01, (
        "chance alone would not reject it"
    )
    alone = {name: np.nan_to_num(value) * np.ones(SHAPE) for name, value in LARGE.items()}
    actual = np.full(SHAPE, np.nan)
    actual[0, 0] = 0.0
    for challenger, passed in ((1.4, True), (1.6, False)):
        single = judge(make_backtest(actual=actual, challenger=challenger, zero_shot=1.0, **alone), FEW_UNITS)
        assert find_check(single).passed is passed, "a single window says nothing of chance"
        assert "p =" not in find_check(single).reason


def test_the_policy_gives_room_or_switches_the_check_off() -> None:
    result = make_backtest(challenger=1.2, zero_shot=1.0, **LARGE)
    within = judge(result, Policy(least=3, naive_room=0.25))
    assert find_check(within).passed
    assert "is, within the room of the policy, worse than" in find_check(within).reason
    off = judge(result, Policy(least=3, zero_shot=False))
    assert off.should_promote
    assert find_check(off).passed is None
    assert "is not judged against the pretrained network's 1.0000" in find_check(off).reason


def test_without_the_pretrained_network_in_the_backtest_there_is_no_check() -> None:
    assert "zero_shot" not in {check.name for check in judge(make_backtest(challenger=1.0, **LARGE)).checks}


def test_without_a_common_window_the_check_does_not_apply() -> None:
    verdict = judge(make_backtest(actual=np.nan, challenger=1.0, zero_shot=1.0, **LARGE), FEW_UNITS)
    assert find_check(verdict).passed is None
    assert find_check(verdict).reason == "there are no errors to compare with those of the pretrained network"


def test_exact_forecasts_of_both_pass_and_rounding_errors_do_not_decide() -> None:
    for challenger, zero_shot in ((0.0, 0.0), (3e-8, 1e-9)):
        verdict = judge(make_backtest(challenger=challenger, zero_shot=zero_shot, **LARGE), FEW_UNITS)
        assert find_check(verdict).passed


def test_reported_scores_may_exceed_those_of_the_pretrained_network_by_half() -> None:
    naive = {"seasonal_naive": {"mase": 2.0, "mae": 4.0}, "zero_shot": {"mase": 1.0, "mae": 2.0}}
    for mase, failed in ((1.4, ()), (1.6, ("zero_shot",))):
        verdict = judge_reported_scores({"challenger": {"mase": mase, "mae": mase}, **naive}, Policy(), Evidence())
        assert verdict.failed_checks == failed
    unscaled = {"challenger": {"mase": None, "mae": 3.5}, **naive}
    by_mae = judge_reported_scores(unscaled, Policy(), Evidence())
    assert by_mae.failed_checks == ("zero_shot",)
    assert "MAE 3.5000 is clearly worse than the pretrained network's 2.0000 (75.0 % larger)" in str(by_mae)
    assert judge_reported_scores(unscaled, Policy(zero_shot=False), Evidence()).should_promote
