"""The commands `forecaster train` and `forecaster retrain`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forecaster.errors import BadSpec, LedgerError, MissingPackage, RefusedByGate
from pipelines.commands.console import print_scores, print_verdict, warn
from pipelines.commands.options import (
    BlendOption,
    DataOptions,
    RootOptions,
    resolve_bundle,
    resolve_spec_selection,
    validate_counts,
)
from pipelines.commands.schedule import ScheduleOptions, schedule_command

if TYPE_CHECKING:
    from pipelines.settings import Root
    from pipelines.sources import DataSource

_ROOT_OPTIONS, _DATA_OPTIONS, _SCHEDULE_OPTIONS = RootOptions(), DataOptions(), ScheduleOptions()


def train(
    data: str | None = None,
    *,
    config: Path | None = None,
    horizon: int | None = None,
    preset: str | None = None,
    members: int | None = None,
    blend: BlendOption = (),
    start_from: str | None = None,
    seed: int | None = None,
    test_windows: int = 1,
    reading: DataOptions = _DATA_OPTIONS,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Fits a forecaster, backtests it on what it has not seen, and writes its bundle. Started again after a kill, it goes on.

    Parameters
    ----------
    data
        A CSV or Parquet file with the columns unique_id, ds, y; a folder of such files, of which later ones (by name) correct
        earlier ones; either of them in a store (s3://bucket/sales.parquet); or a data set that ships: hospital, sine_trend.
    config
        Specification in YAML; without one, the preset of the data's frequency, its variants tried on the last known windows.
    horizon
        Steps ahead, instead of the specification's.
    preset
        One that is not the frequency's: classic, yearly, quarterly, monthly, weekly, daily or hourly.
    members
        Networks of other seeds, trained side by side; their median is the forecast. Five take about five times as long as one.
    blend
        A statistical model whose forecasts are blended with the network's, with weights from the validation windows; may be
        given again. It is fitted to every history anew, when serving too, and needs the extra 'baselines' there as here.
    start_from
        A bundle folder, or a registered model as NAME or NAME@ALIAS, whose weights to start from; its specification, if no other.
    seed
        Seed, instead of the specification's.
    test_windows
        Rolling origins kept from the fit and used to test it; 0 trains on everything.
    """
    from forecaster.bundle import artifact
    from pipelines.training.train import train as run

    source = reading.to_data_source(data)
    initial = None if start_from is None else artifact.load_bundle(resolve_bundle(start_from, where))
    root = where.open_root()
    chosen = resolve_spec_selection(
        config,
        source,
        horizon=horizon,
        seed=seed,
        preset=preset,
        members=members,
        blend=blend,
        fallback_spec=None if initial is None else initial.spec,
        test_windows=test_windows,
    )
    trained = run(
        source,
        chosen.spec,
        root,
        initial=initial,
        test_windows=test_windows,
        candidates=chosen.candidates,
        show_progress=sys.stderr.isatty(),
    )
    print_scores(trained.scores)
    print(f"bundle  {trained.bundle}\nrun     {trained.run_id}\ndigest  {trained.digest}")


def retrain(
    data: str | None = None,
    *,
    config: Path | None = None,
    horizon: int | None = None,
    preset: str | None = None,
    members: int | None = None,
    blend: BlendOption = (),
    warm: bool = False,
    seed: int | None = None,
    test_windows: int = 1,
    policy: Path | None = None,
    trigger: str = "cli",
    again: Annotated[bool, Parameter(negative="")] = False,
    if_needed: Annotated[bool, Parameter(negative="")] = False,
    min_new: int | None = None,
    recurrence: ScheduleOptions = _SCHEDULE_OPTIONS,
    reading: DataOptions = _DATA_OPTIONS,
    where: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Trains a challenger and promotes it if it proves better than champion and seasonal naive on the same origins.

    Ends with 0 when it was promoted and with 3 when it was not; fit to be called from cron. The same data, specification, policy
    and code make one version: asked again, at once or after a kill, it answers with the verdict that there was.

    Parameters
    ----------
    data
        As for train.
    config
        Specification in YAML; its name is the model's. Without one, the preset of the data's frequency, as for train.
    horizon
        Steps ahead, instead of the specification's.
    preset
        As for train.
    members
        As for train.
    blend
        As for train.
    warm
        Whether to start from the champion's weights, where there is one; the specification has to be of its network.
    seed
        Seed, instead of the specification's.
    test_windows
        Rolling origins to judge by, a horizon apart.
    policy
        The gate's bounds in YAML (README: What the gate asks); its defaults where none is given.
    trigger
        What started it, for the run's tags.
    again
        Train and judge anew, even if the same was done before.
    if_needed
        Train only if something calls for it: no champion, new data, or what watches the champion. Says what, and ends with 0
        where nothing does.
    min_new
        With --if-needed: so many new steps call for it; a horizon of the champion's, if not given.
    """
    asked = {name: value for name, value in locals().items() if name not in ("recurrence", "where")}
    from pipelines.promotion.policy import read_policy
    from pipelines.retraining.retrain import retrain_once

    validate_counts(min_new=min_new, horizon=horizon, members=members)
    source, bounds = reading.to_data_source(data), read_policy(policy)
    if recurrence.cron is not None:
        if config is None and horizon is None:
            raise BadSpec("Expected --config FILE or --horizon STEPS; found neither. Say how far ahead to forecast.")
        asked["trigger"] = "schedule" if trigger == "cli" else trigger
        schedule_command(_resolve_model_name(config, source), "retrain", asked, recurrence, where)
        return
    root = where.open_root()
    if if_needed and not _needs_retraining(_resolve_model_name(config, source), source, root, min_new):
        return
    chosen = resolve_spec_selection(
        config,
        source,
        horizon=horizon,
        seed=seed,
        preset=preset,
        members=members,
        blend=blend,
        test_windows=test_windows,
    )
    done, key, before = retrain_once(
        source,
        chosen.spec,
        root,
        warm_start=warm,
        test_windows=test_windows,
        policy=bounds,
        trigger=trigger,
        candidates=chosen.candidates,
        show_progress=sys.stderr.isatty(),
        force_retrain=again,
    )
    print(f"key     {key}{' (done before; this is its verdict)' if before else ''}")
    print_scores(done.training.scores)
    print_verdict(done.verdict)
    print(f"report  {done.report_path}")
    named = f"{done.version.name} version {done.version.number}"
    reasons = "; ".join(done.verdict.reasons)
    if not done.verdict.should_promote:
        raise RefusedByGate(f"{named} was registered but not promoted: {reasons}.")
    print(f"{named} {'was made' if before else 'is'} the champion: {reasons}")


def _resolve_model_name(config: Path | None, data: DataSource) -> str:
    """The model's name, before anything is tried to find a specification."""
    from pipelines.sources import derive_model_name, read_spec

    return derive_model_name(data.name) if config is None else read_spec(config).name


def _find_ledger_reasons(name: str, root: Root) -> list[str]:
    """What the ledger of served forecasts says; a ledger that cannot be read keeps nobody from looking at the data."""
    from pipelines.monitoring.monitor import find_retrain_reasons

    try:
        return find_retrain_reasons(root, name, url=os.environ.get("FORECASTER_SERVING_LEDGER"))
    except (LedgerError, MissingPackage) as error:
        warn(f"the ledger was not asked; {error.message}")
        return []


def _needs_retraining(name: str, data: DataSource, root: Root, min_new_steps: int | None) -> bool:
    from pipelines.retraining.triggers import check_triggers

    found = check_triggers(
        name, data, root, min_new_steps=min_new_steps, checks=[lambda: _find_ledger_reasons(name, root)]
    )
    if found:
        print(f"needed  {'; '.join(found.reasons)}")
    else:
        print(f"nothing to do: {found.summary}")
    return bool(found)
