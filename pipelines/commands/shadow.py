"""The command `forecaster shadow`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forecaster.errors import RefusedByGate
from pipelines.commands.options import RootOptions, validate_output_paths

_ROOT_OPTIONS = RootOptions()


def shadow(
    name: str,
    *,
    url: Annotated[str | None, Parameter(env_var="FORECASTER_SERVING_LEDGER")] = None,
    alpha: float = 0.05,
    margin: float = 0.0,
    least: int = 3,
    promote: bool = False,
    out: Path | None = None,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Compares the challenger that forecasts in the shadow of the champion with it, on what came; may be asked any day.

    The service has to run with FORECASTER_SERVING_SHADOW=challenger and a ledger, and has to be told late actuals. Ends with 3
    if the challenger has proved worse, or if it was to be promoted and has not proved better.

    Parameters
    ----------
    name
        The registered model.
    url
        The ledger's database, as the service is told it; that of a service under the root, if not given.
    alpha
        The chance of calling a challenger better that is not, however often this is asked.
    margin
        The least relative gain that counts as better: 0.01 is one percent.
    least
        Origins to compare before anything is said.
    promote
        Make the challenger the champion if it has proved better; where it is champion already, nothing is left to do.
    out
        Where to write the same as JSON.
    """
    from pipelines.monitoring.shadow import complete_promotion, judge_shadow, promote_shadow

    validate_output_paths(out=out)
    root = where.open_existing_root()
    done = complete_promotion(name, root) if promote else None
    if done is not None:
        print(f"{done.name} version {done.number} is the champion already ({done.digest[:12]})")
        return
    trial = judge_shadow(name, root, url=url, alpha=alpha, margin=margin, min_origins=least)
    told = "; ".join(trial.reasons)
    print(
        f"{trial.challenger} beside {trial.champion}: {trial.outcome} ({trial.n_forecasts} forecasts of both)\n{told}"
    )
    if out is not None:
        fields = {"champion": trial.champion._asdict(), "challenger": trial.challenger._asdict()}
        found = {
            key: value for key, value in trial.test_result._asdict().items() if value == value
        }  # a NaN is left out
        verdict = {"word": trial.outcome, "reasons": trial.reasons, "forecasts": trial.n_forecasts}
        out.write_text(json.dumps({**fields, "standing": found, **verdict}, indent=2) + "\n")
    if promote:
        promoted = promote_shadow(trial, root)
        print(f"{promoted.name} version {promoted.number} is the champion ({promoted.digest[:12]})")
    elif trial.outcome == "worse":
        raise RefusedByGate(f"{trial.challenger} has proved worse than the champion: {told}.", where=name)
