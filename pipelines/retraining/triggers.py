"""Whether a retraining is called for, and why: no champion, new data, or what watches the champion says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from forecaster.bundle import artifact
from forecaster.frequency import format_timestamp
from forecaster.prediction.predictor import FittedModel
from forecaster.registry.registry import Registry
from pipelines.promotion.evidence import compute_data_end, count_steps_since
from pipelines.promotion.promote import fetch_bundle, find_champion
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel

TriggerCheck = Callable[[], Sequence[str]]
"""Says why the champion should be looked at (drift, falling accuracy); nothing where it need not be."""


class TriggerResult(NamedTuple):
    """Reasons to retrain, none where there is nothing to do; and what was found besides."""

    reasons: tuple[str, ...]
    summary: str

    def __bool__(self) -> bool:
        return bool(self.reasons)


def check_triggers(
    name: str, data: DataSource, root: Root, *, min_new_steps: int | None = None, checks: Iterable[TriggerCheck] = ()
) -> TriggerResult:
    """Asks the data and what watches the champion of a name.

    Args:
        name: Of the registered model.
        data: Where the panel comes from.
        root: Where state lives.
        min_new: So many steps after the champion's data call for a retraining; None for a horizon of the champion's.
        watches: Asked besides; all of them, so that every reason is told.
    """
    base = find_champion(Registry(root.store_uri), name)
    if base is None:
        return TriggerResult((f"there is no champion of '{name}'",), "nothing was trained yet")
    champion = artifact.load_bundle(fetch_bundle(base, root))
    fresh, found = _check_new_data(champion, data, min_new_steps or champion.spec.horizon)
    watched = [reason for watch in checks for reason in watch()]
    return TriggerResult((*fresh, *watched), f"the champion of '{name}' is version {base.number}; {found}")


def _check_new_data(champion: FittedModel, data: DataSource, min_new_steps: int) -> tuple[list[str], str]:
    panel = read_panel(data.for_spec(champion.spec))
    end, since = compute_data_end(champion), count_steps_since(champion, panel)
    if since is None:
        reason = (
            f"the data, of frequency {panel.freq} up to {format_timestamp(panel.cutoff)}, cannot be compared with the champion's, of "
            f"{champion.freq} up to {format_timestamp(end)}"
        )
        return [reason], reason
    steps = "1 step" if since == 1 else f"{since} steps"
    told = f"{steps} came after its data, which end at {format_timestamp(end)}"
    return (
        [f"{told}; {min_new_steps} are enough"] if since >= min_new_steps else []
    ), f"{told}, of {min_new_steps} that call for a retraining"
