"""Whether a retraining is called for, and why: no champion, new data, or what watches the champion says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from forecaster.bundle import artifact
from forecaster.frequency import tell
from forecaster.prediction.predictor import Forecaster
from forecaster.registry.registry import Registry
from pipelines.promotion.evidence import data_end, steps_since
from pipelines.promotion.promote import champion_of, fetch
from pipelines.settings import Root
from pipelines.sources import Data, read

Watch = Callable[[], Sequence[str]]
"""Says why the champion should be looked at (drift, falling accuracy); nothing where it need not be."""


class Need(NamedTuple):
    """Reasons to retrain, none where there is nothing to do; and what was found besides."""

    reasons: tuple[str, ...]
    found: str

    def __bool__(self) -> bool:
        return bool(self.reasons)


def need(name: str, data: Data, root: Root, *, min_new: int | None = None, watches: Iterable[Watch] = ()) -> Need:
    """Asks the data and what watches the champion of a name.

    Args:
        name: Of the registered model.
        data: Where the panel comes from.
        root: Where state lives.
        min_new: So many steps after the champion's data call for a retraining; None for a horizon of the champion's.
        watches: Asked besides; all of them, so that every reason is told.
    """
    base = champion_of(Registry(root.store), name)
    if base is None:
        return Need((f"there is no champion of '{name}'",), "nothing was trained yet")
    champion = artifact.load(fetch(base, root))
    fresh, found = _new_data(champion, data, min_new or champion.spec.horizon)
    watched = [reason for watch in watches for reason in watch()]
    return Need((*fresh, *watched), f"the champion of '{name}' is version {base.number}; {found}")


def _new_data(champion: Forecaster, data: Data, least: int) -> tuple[list[str], str]:
    panel = read(data.for_spec(champion.spec))
    end, since = data_end(champion), steps_since(champion, panel)
    if since is None:
        reason = (
            f"the data, of frequency {panel.freq} up to {tell(panel.cutoff)}, cannot be compared with the champion's, of "
            f"{champion.freq} up to {tell(end)}"
        )
        return [reason], reason
    steps = "1 step" if since == 1 else f"{since} steps"
    told = f"{steps} came after its data, which end at {tell(end)}"
    return ([f"{told}; {least} are enough"] if since >= least else []), f"{told}, of {least} that call for a retraining"
