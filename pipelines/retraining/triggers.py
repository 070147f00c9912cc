"""Decides whether a retraining is needed, and why: no champion, new data, or a finding of monitoring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from forecaster.bundle import artifact
from forecaster.frequency.timestamps import format_timestamp
from forecaster.prediction.predictor import FittedModel
from forecaster.registry.registry import Registry
from forecaster.series import Panel
from pipelines.promotion.evidence import Clock, compute_data_end, count_days_ahead, count_steps_since, utc_now
from pipelines.promotion.policy import Policy
from pipelines.promotion.promote import fetch_bundle, find_champion
from pipelines.settings import Root

TriggerCheck = Callable[[], Sequence[str]]
"""Returns the reasons to replace the champion (drift, falling accuracy); empty if there are none."""


class TriggerResult(NamedTuple):
    """The reasons to retrain, empty if there are none, and a summary of what was checked."""

    reasons: tuple[str, ...]
    summary: str

    def __bool__(self) -> bool:
        return bool(self.reasons)


def check_triggers(
    name: str,
    panel: Panel,
    root: Root,
    *,
    min_new_steps: int | None = None,
    checks: Iterable[TriggerCheck] = (),
    max_days_ahead: float = Policy().days_ahead,
    clock: Clock = utc_now,
) -> TriggerResult:
    """Checks the data and the champion of a name for reasons to retrain.

    Args:
        name: The registered model.
        panel: The data that a retraining would use.
        root: The root folder.
        min_new_steps: Steps after the champion's data that trigger a retraining; by default the champion's horizon.
        checks: Additional checks; all of them run, so that every reason is reported.
        max_days_ahead: As `Policy.days_ahead`; a champion whose data end later has wrong timestamps and is replaced.
        clock: Returns the present.
    """
    version = find_champion(Registry(root.store_uri), name)
    if version is None:
        return TriggerResult((f"there is no champion of '{name}'",), "no model was trained yet")
    champion = artifact.load_bundle(fetch_bundle(version, root))
    data_reasons, data_summary = _check_new_data(champion, panel, min_new_steps or champion.spec.horizon)
    days_ahead = count_days_ahead(champion, clock())
    if days_ahead is not None and days_ahead > max_days_ahead:
        data_reasons = [
            f"the data of the champion end at {format_timestamp(compute_data_end(champion))}, {days_ahead:.0f} days after the "
            "present, so their timestamps are wrong",
            *data_reasons,
        ]
    check_reasons = [reason for check in checks for reason in check()]
    return TriggerResult(
        (*data_reasons, *check_reasons), f"the champion of '{name}' is version {version.number}; {data_summary}"
    )


def _check_new_data(champion: FittedModel, panel: Panel, min_new_steps: int) -> tuple[list[str], str]:
    """Returns the reasons to retrain that the data give, and a summary."""
    end, num_new_steps = compute_data_end(champion), count_steps_since(champion, panel)
    if num_new_steps is None:
        reason = (
            f"the data (frequency {panel.freq}, up to {format_timestamp(panel.cutoff)}) cannot be compared with the champion's "
            f"(frequency {champion.freq}, up to {format_timestamp(end)})"
        )
        return [reason], reason
    steps = "1 new step" if num_new_steps == 1 else f"{num_new_steps} new steps"
    summary = f"{steps} since the end of its data at {format_timestamp(end)}"
    reasons = [f"{summary}; at least {min_new_steps} trigger a retraining"] if num_new_steps >= min_new_steps else []
    return reasons, f"{summary}; {min_new_steps} trigger a retraining"
