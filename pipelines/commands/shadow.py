"""The command `forecaster shadow`."""

from __future__ import annotations

import json
import math
from pathlib import Path

from forecaster.errors import RefusedByGate
from pipelines.commands.options import RootOptions, resolve_ledger_url, validate_output_paths

_ROOT_OPTIONS = RootOptions()


def shadow(
    name: str,
    *,
    url: str | None = None,
    alpha: float = 0.05,
    margin: float = 0.0,
    least: int = 3,
    promote: bool = False,
    out: Path | None = None,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Compares the champion and the challenger that forecasts in its shadow on actuals; the test is valid at any time.

    The service has to run with FORECASTER_SERVING_SHADOW=challenger and a ledger, and has to receive late actuals. Exits with 3
    if the challenger is shown to be worse, or if it should be promoted and is not shown to be better.

    Parameters
    ----------
    name
        The registered model.
    url
        URL of the ledger's database without a password; by default that of FORECASTER_SERVING_LEDGER, or the ledger of a
        service under the root.
    alpha
        Probability of calling a challenger better although it is not, over any number of looks at the data.
    margin
        Smallest relative improvement that counts as better: 0.01 is one percent.
    least
        Smallest number of origins for a decision.
    promote
        Promote the challenger if it is shown to be better; does nothing if it is the champion already.
    out
        File for the result as JSON.
    """
    from pipelines.monitoring.shadow import complete_promotion, judge_shadow, promote_shadow

    validate_output_paths(out=out)
    root = root_options.open_existing_root()
    champion = complete_promotion(name, root) if promote else None
    if champion is not None:
        print(f"{champion.name} version {champion.number} is the champion already ({champion.digest[:12]})")
        return
    trial = judge_shadow(name, root, url=resolve_ledger_url(url), alpha=alpha, margin=margin, min_origins=least)
    reasons = "; ".join(trial.reasons)
    print(
        f"{trial.challenger} compared with {trial.champion}: {trial.outcome} ({trial.n_forecasts} forecasts of both)\n{reasons}"
    )
    if out is not None:
        versions = {"champion": trial.champion._asdict(), "challenger": trial.challenger._asdict()}
        statistics = {key: value for key, value in trial.test_result._asdict().items() if not math.isnan(value)}
        verdict = {"word": trial.outcome, "reasons": trial.reasons, "forecasts": trial.n_forecasts}
        out.write_text(json.dumps({**versions, "standing": statistics, **verdict}, indent=2) + "\n")
    if promote:
        promoted = promote_shadow(trial, root)
        print(f"{promoted.name} version {promoted.number} is the champion ({promoted.digest[:12]})")
    elif trial.outcome == "worse":
        raise RefusedByGate(f"{trial.challenger} is shown to be worse than the champion: {reasons}.", where=name)
