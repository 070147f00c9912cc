"""The commands `forecaster train` and `forecaster retrain`."""

from __future__ import annotations

import sys
from pathlib import Path

from forecaster.errors import RefusedByGate
from pipelines.arguments import Blended, Reading, Where, bundle_of, meant
from pipelines.terminal import print_scores, print_verdict

_WHERE, _READING = Where(), Reading()


def train(
    data: str,
    *,
    config: Path | None = None,
    horizon: int | None = None,
    preset: str | None = None,
    members: int | None = None,
    blend: Blended = (),
    start_from: str | None = None,
    seed: int | None = None,
    test_windows: int = 1,
    reading: Reading = _READING,
    where: Where = _WHERE,
) -> None:
    """Fits a forecaster, backtests it on what it has not seen, and writes its bundle. Started again after a kill, it goes on.

    Parameters
    ----------
    data
        A CSV or Parquet file with the columns unique_id, ds, y; or a data set that ships: hospital, sine_trend.
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
    from forecaster import artifact
    from pipelines.train import train as run

    source = reading.of(data)
    initial = None if start_from is None else artifact.load(bundle_of(start_from, where))
    chosen = meant(
        config,
        source,
        horizon=horizon,
        seed=seed,
        preset=preset,
        members=members,
        blend=blend,
        like=None if initial is None else initial.spec,
        test_windows=test_windows,
    )
    root = where.open()
    trained = run(
        source,
        chosen.spec,
        root,
        initial=initial,
        test_windows=test_windows,
        tried=chosen.tried,
        progress=sys.stderr.isatty(),
    )
    print_scores(trained.scores)
    print(f"bundle  {trained.bundle}\nrun     {trained.run_id}\ndigest  {trained.digest}")


def retrain(
    data: str,
    *,
    config: Path | None = None,
    horizon: int | None = None,
    preset: str | None = None,
    members: int | None = None,
    blend: Blended = (),
    warm: bool = False,
    seed: int | None = None,
    test_windows: int = 1,
    policy: Path | None = None,
    trigger: str = "cli",
    reading: Reading = _READING,
    where: Where = _WHERE,
) -> None:
    """Trains a challenger and promotes it if it proves better than champion and seasonal naive on the same origins.

    Ends with 0 when it was promoted and with 3 when it was not; fit to be called from cron.

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
    """
    from pipelines.policy import read_policy
    from pipelines.retrain import retrain as run

    source, bounds = reading.of(data), read_policy(policy)
    chosen = meant(
        config,
        source,
        horizon=horizon,
        seed=seed,
        preset=preset,
        members=members,
        blend=blend,
        test_windows=test_windows,
    )
    done = run(
        source,
        chosen.spec,
        where.open(),
        warm=warm,
        test_windows=test_windows,
        policy=bounds,
        trigger=trigger,
        tried=chosen.tried,
        progress=sys.stderr.isatty(),
    )
    print_scores(done.trained.scores)
    print_verdict(done.verdict)
    print(f"report  {done.report}")
    named = f"{done.version.name} version {done.version.number}"
    if not done.verdict.promote:
        raise RefusedByGate(f"{named} was registered but not promoted: {'; '.join(done.verdict.reasons)}.")
    print(f"{named} is the champion: {'; '.join(done.verdict.reasons)}")
