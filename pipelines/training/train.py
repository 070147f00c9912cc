"""A training: fit, backtest, bundle, and one tracked run of it all."""

from __future__ import annotations

import fcntl
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from forecaster.bundle import artifact
from forecaster.data.profile import learn_profile
from forecaster.data.split import hold_out
from forecaster.errors import TrainingError
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.evaluation.baselines import Ask, seasonal_naive
from forecaster.evaluation.blend_weights import Weighed, blended
from forecaster.evaluation.calibration import calibrated, with_quantiles
from forecaster.evaluation.plots import calibration_plot, error_by_horizon, origins_plot
from forecaster.evaluation.scores import INTERVALS, LEVELS, score_table
from forecaster.evaluation.validation import exposure_gap, trials
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.registry.registry import CHALLENGER
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.statistical.blend import NETWORK, need_all, tell
from forecaster.storage import atomic
from forecaster.training.datamodule import cut
from forecaster.training.fit import Fitted, fit, fit_digest, refit
from pipelines.promotion.gate import SEASONAL_NAIVE
from pipelines.settings import Root
from pipelines.sources import Data, check_test_windows, read
from pipelines.tracking import backtests
from pipelines.tracking.run import DataSet, Run, open_run
from pipelines.training.model_card import card_of, finite, reliable_horizon
from pipelines.training.retrain_key import TAG

BOUNDS = tuple(sorted(round((1 + side * share) / 2, 6) for share in INTERVALS for side in (-1, 1)))  # kept with a run

_log = logging.getLogger(__name__)


class EpochLines(pl.Callback):
    """A line an epoch in the log, for terminals that cannot show a bar."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells of the epoch before: at its own end its scores are not complete yet."""
        self._tell(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells of the last epoch."""
        self._tell(trainer)

    def _tell(self, trainer: pl.Trainer) -> None:
        scores = ", ".join(f"{name} {float(value):.4g}" for name, value in sorted(trainer.callback_metrics.items()))
        if scores:
            _log.info("epoch %d of %s: %s", trainer.current_epoch, trainer.max_epochs, scores)


class Candidate(NamedTuple):
    """A specification that was tried before one was chosen: what it is, and its error on validation windows."""

    what: str
    error: float


class Trained(NamedTuple):
    """A bundle on disk, and how it did."""

    bundle: Path
    digest: str
    run_id: str
    forecaster: Forecaster
    scores: Mapping[str, Mapping[str, float]]  # by forecaster: mase, rmsse, smape, mae
    result: Backtest | None  # None where nothing was held out to test on


def train(
    data: Data,
    spec: Spec,
    root: Root,
    *,
    panel: Panel | None = None,
    key: str | None = None,
    initial: Forecaster | None = None,
    rivals: Mapping[str, Ask | Predictor] | None = None,
    test_windows: int = 1,
    trigger: str = "cli",
    tried: Sequence[Candidate] = (),
    progress: bool = False,
) -> Trained:
    """Fits a forecaster on all but the last test windows, backtests it there, writes its bundle, and tracks it all.

    Args:
        data: Where the panel comes from.
        spec: What to make.
        root: Where state lives. A training killed there goes on from its last epoch when it is started again.
        panel: What was read of the data, if it has been.
        key: What makes it the same as another retraining; tagged, and among the bundle's facts.
        initial: Whose weights to start from; random ones, if not given.
        rivals: Further forecasters to ask at the same cutoffs.
        test_windows: Rolling origins kept from the fit altogether, a horizon apart; 0 trains on everything, untested.
        trigger: What started it, for the run's tags.
        tried: From what the specification was chosen, for the run.
        progress: Whether to show a progress bar.
    """
    check_test_windows(test_windows)
    panel = read(data.for_spec(spec)) if panel is None else panel
    for repair in panel.repairs:
        _log.warning("%s: %s", data.source, repair)
    known = _known(panel, spec, test_windows)
    cut(known, spec)  # what cannot be trained on is refused before there is a run of it
    need_all(spec.blend)
    dataset = DataSet(data.name, known.digest(), data.source, known.cutoff)
    asked_for = {TAG: key, "asked_cutoff": data.cutoff, "refit": str(spec.training.refit).lower()} | _choice(tried)
    with _workplace(workplace(panel, spec, root, initial=initial, test_windows=test_windows)) as place:
        with open_run(
            spec,
            dataset,
            root=root.path,
            uri=root.uri,
            trigger=trigger,
            run_id=_read_if_there(place / "run_id"),
            tags={name: value for name, value in asked_for.items() if value is not None},
        ) as run:
            atomic.write_text(place / "run_id", run.id)
            run.curve("choice/error", [one.error for one in tried])
            started = time.monotonic()
            callbacks = [] if progress else [EpochLines()]
            fitted = fit(
                known,
                spec,
                initial=initial,
                checkpoint=place / "last.ckpt",
                loggers=[run.logger],
                callbacks=callbacks,
                progress=progress,
            )
            fitted, weighed = _validated(fitted, known, spec)
            if spec.training.refit:
                whole = refit(
                    known,
                    fitted,
                    initial=initial,
                    checkpoint=place / "whole.ckpt",
                    callbacks=callbacks,
                    progress=progress,
                )
                fitted = fitted._replace(forecaster=whole)
                run.logger.log_metrics({"refit/steps": fitted.best_steps})
            seconds = time.monotonic() - started
            forecaster, result, told = fitted.forecaster, None, None
            if test_windows:
                alone = {NETWORK: Predictor(replace(forecaster, blend={}))} if forecaster.blend else {}
                result = tested(panel, forecaster, rivals={**alone, **(rivals or {})}, windows=test_windows)
                told = with_quantiles(result, {CHALLENGER: forecaster}, levels=LEVELS)
                _draw(run, told)  # while the bundle is written
            facts = _facts(data, panel, known, fitted, result, weighed, run_id=run.id)
            finished = replace(forecaster, facts=facts if key is None else {**facts, TAG: key})
            bundle = root.bundles / run.id
            _clear(bundle)
            card = card_of(finished)
            digest = artifact.save(finished, bundle, card=card)
            run.tag("bundle_digest", digest)
            if finished.blend:
                run.tag("blend", tell(finished.blend))
            run.card(card)
            _record(run, spec, fitted, told, seconds=seconds, windows=test_windows)
        shutil.rmtree(place)
    return Trained(bundle, digest, run.id, finished, facts["backtest"], result)


def _validated(fitted: Fitted, known: Panel, spec: Spec) -> tuple[Fitted, Weighed | None]:
    """The fitted forecaster with what the validation windows say of it: intervals, and the weights of its blend."""
    windows, stride, weighed = spec.training.valid_windows, spec.training.valid_stride, None
    if not windows:
        return fitted, None
    if spec.blend:
        forecaster, weighed = blended(fitted.forecaster, known, windows=windows, stride=stride)
        _log.info("blend: %s", tell(weighed.weights))
    else:
        forecaster = calibrated(fitted.forecaster, known, windows=windows, stride=stride)
    return fitted._replace(forecaster=forecaster), weighed


def tested(panel: Panel, forecaster: Forecaster, *, rivals: Mapping[str, Ask | Predictor], windows: int) -> Backtest:
    """The test of a training: the forecaster, its rivals and seasonal naive on the last windows."""
    spec, season = forecaster.spec, forecaster.season
    asked = {CHALLENGER: Predictor(forecaster), **rivals, SEASONAL_NAIVE: seasonal_naive(season)}
    return backtest(panel, asked, horizon=spec.horizon, windows=windows, season=season, keep=spec.least + 1)


def workplace(panel: Panel, spec: Spec, root: Root, *, initial: Forecaster | None, test_windows: int) -> Path:
    """Where a training is under way, if it is: a folder that is gone when it has ended well."""
    return root.checkpoints / fit_digest(_known(panel, spec, test_windows), spec, initial)[:16]


def _known(panel: Panel, spec: Spec, test_windows: int) -> Panel:
    return hold_out(panel, test_windows * spec.horizon, keep=spec.least + 1).known if test_windows else panel


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """The folder of one fit; refuses a second process that would train the same thing at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"The same training is running already (it holds {lock.name}). Wait for it, or change the specification.",
                where=str(folder),
            ) from error
        yield folder


def _clear(bundle: Path) -> None:
    """Takes away what a training killed here left: drafts, and a bundle that is written anew; a kill leaves it or nothing."""
    for draft in bundle.parent.glob(f".{bundle.name}.*"):
        shutil.rmtree(draft, ignore_errors=True)
    if bundle.exists():
        shutil.rmtree(bundle.rename(bundle.with_name(f".{bundle.name}.old")))


def _read_if_there(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _facts(
    data: Data,
    panel: Panel,
    known: Panel,
    fitted: Fitted,
    result: Backtest | None,
    weighed: Weighed | None,
    *,
    run_id: str,
) -> dict[str, Any]:
    names = [] if result is None else list(result.forecasts)
    blend = {} if weighed is None else {"blend": {**weighed._asdict(), "errors": finite(weighed.errors)}}
    return blend | {
        "run_id": run_id,
        "data": data.name,
        "data_digest": known.digest(),
        "series": len(known.series) - len(fitted.left_out),
        "left_out": len(panel.series) - len(known.series) + len(fitted.left_out),
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "validation": fitted.scores,
        "test_windows": 0 if result is None else result.actual.shape[1],
        "backtest": {} if result is None else {name: finite(result.scores(name)) for name in names},
        "reliable_horizon": None if result is None else reliable_horizon(result),
        "inputs": learn_profile(
            known.series, context=fitted.forecaster.spec.context, season=fitted.forecaster.season
        ).model_dump(mode="json"),
    }


def _choice(tried: Sequence[Candidate]) -> dict[str, str]:
    """What the specification was chosen from, and the best, in words."""
    if not tried:
        return {}
    best = min(tried, key=lambda one: one.error)
    return {"chosen": best.what, "tried": ", ".join(f"{one.what} {one.error:.4g}" for one in tried)}


def _draw(run: Run, result: Backtest) -> None:
    """The pictures of a test."""
    run.figure("plots/forecast.png", origins_plot(result, CHALLENGER))
    run.figure("plots/error_by_horizon.png", error_by_horizon(result))
    if result.quantiles:
        run.figure("plots/calibration.png", calibration_plot(result))


def _record(
    run: Run,
    spec: Spec,
    fitted: Fitted,
    result: Backtest | None,
    *,
    seconds: float,
    windows: int,
) -> None:
    """Everything that runs are compared by, under the names that all runs share."""
    made = (fitted.steps - fitted.steps_before + spec.training.refit * fitted.best_steps) * spec.training.batch
    if made:  # else all was fitted before a kill, and was recorded then or never
        run.headline({"train/seconds": seconds, "train/windows_per_s": made / seconds})
    if result is None:
        return
    origins = trials(
        result.series,
        context=fitted.forecaster.network.shown(max(map(len, result.series))),
        horizon=spec.horizon,
        windows=windows,
        season=fitted.forecaster.season,
        encoding=fitted.forecaster.encoding,
        channels=spec.channels,
    )
    run.headline({"bt/exposure_gap": exposure_gap(fitted.forecaster.networks, origins)})
    if NETWORK in result.forecasts:
        pure = result.scores(NETWORK)
        run.headline({f"bt_pure/{name}": pure[name] for name in ("mase", "rmsse", "smape")})
    levels = BOUNDS if result.quantiles else ()
    backtests.record(run, result, score_table(result), model=CHALLENGER, levels=levels)
