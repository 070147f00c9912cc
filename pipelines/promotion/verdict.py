"""The verdict of the promotion gate: its checks, and the measurements of a challenger that some of them need."""

from __future__ import annotations

from typing import NamedTuple

from forecaster.evaluation.baselines import BASELINES
from forecaster.evaluation.bootstrap import PairedGain
from forecaster.registry.registry import CHAMPION


class Evidence(NamedTuple):
    """Measurements of a challenger besides its backtest; None means not measured.

    Attributes:
        megabytes: Size of the bundle, 10^6 bytes.
        latency_ms: Median latency of single forecasts, computed as a server computes them.
        graph_difference: Largest difference between the ONNX graph and the reference engine, as a share of the series' range.
        replay_difference: Largest difference between the backtest and forecasts of the served model from histories cut at
            the same cutoffs, as a share of the series' range.
        exposure_gap: Ratio of free-running to one-step errors.
        steps_behind: Steps by which the challenger's data end before those of the champion.
        days_ahead: Days by which the last step of the challenger's data begins after the present.
        champion_days_ahead: The same of the champion's data.
        champion_differences: Why the champion cannot be measured on the challenger's data; empty if it can.
    """

    megabytes: float | None = None
    latency_ms: float | None = None
    graph_difference: float | None = None
    replay_difference: float | None = None
    exposure_gap: float | None = None
    steps_behind: int | None = None
    days_ahead: float | None = None
    champion_days_ahead: float | None = None
    champion_differences: tuple[str, ...] = ()


class Check(NamedTuple):
    """The result of one check: its value, its bound and a sentence; `passed` is None if the check does not apply."""

    name: str
    passed: bool | None
    value: float | None
    bound: float | None
    reason: str


class GroupGain(NamedTuple):
    """The relative gain over the champion of a group of series; negative if the challenger is worse."""

    name: str
    series: int
    gain: float


class Verdict(NamedTuple):
    """The decision: every check, and the gains that the figures of a report are drawn from."""

    checks: tuple[Check, ...]
    gain: PairedGain | None = None
    groups: tuple[GroupGain, ...] = ()

    @property
    def should_promote(self) -> bool:
        """Whether the challenger should be promoted: no check failed."""
        return all(check.passed is not False for check in self.checks)

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.passed is False)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons of the failed checks; if none failed, those of the comparisons with the baselines and the champion."""
        checks = [check for check in self.checks if check.passed is False]
        checks = checks or [check for check in self.checks if check.name in (*BASELINES, CHAMPION)]
        return tuple(check.reason for check in checks)

    def __str__(self) -> str:
        return f"{'promote' if self.should_promote else 'keep the current model'}: {'; '.join(self.reasons)}"
