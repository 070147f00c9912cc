"""One pretraining: train the network on synthetic series, write its bundle, and track all of it in one run."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from forecaster.bundle import artifact
from forecaster.bundle.pretrained.specification import BASE_NAME
from forecaster.errors import BundleError, InputError
from forecaster.prediction.fitted_model import FittedModel
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.storage import atomic
from forecaster.storage.failpoints import fail_point
from forecaster.training.pretraining import run as pretraining
from forecaster.training.pretraining.card import SEPARATE_NETWORK_OPTIONS, render_pretraining_card
from forecaster.training.pretraining.module import PretrainingOptions
from pipelines.settings import Root
from pipelines.tracking.run import RunDataset, TrackedRun, UnrecordedRun, open_run
from pipelines.training.interruptions import explain_interrupt, lock_checkpoint_folder, read_run_id


class PretrainedBundle(NamedTuple):
    """The bundle that a pretraining wrote, and how long it took."""

    bundle: Path
    digest: str
    num_bytes: int
    run_id: str | None  # None if the pretraining was not recorded
    loss: float
    steps: int
    cpu_seconds: float


def parse_options(**fields: Any) -> PretrainingOptions:
    """Returns the options with these fields; None keeps the default. Fields of the network are named as they are there.

    Raises InputError.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    network = {name: given.pop(name) for name in SEPARATE_NETWORK_OPTIONS if name in given}
    defaults = PretrainingOptions().network.model_dump()
    try:
        return PretrainingOptions.model_validate({**given, "network": {**defaults, **network}})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][-1]).replace("_", "-")
        raise InputError(
            f"Expected a valid --{name}; found {first['input']} ({first['msg']}). Use another value.", where=name
        ) from error


def find_interrupted_bundle(out: Path, options: PretrainingOptions, root: Root) -> FittedModel | None:
    """Returns the model of a bundle that the same pretraining wrote before it was killed; None if nothing exists at its path.

    The bundle is verified, and has the options, the specification and all steps. A pretraining that ended has no checkpoint.

    Raises:
        InputError: Something else exists at the path.
    """
    if not out.exists():
        return None
    if get_checkpoint_folder(options, root).exists():
        with suppress(BundleError):
            model = artifact.load_bundle(out)
            expected = (options.model_dump(mode="json"), options.steps, pretraining.reference_spec(options))
            if (model.facts.get("pretraining"), model.facts.get("steps"), model.spec) == expected:
                return model
    raise InputError(
        f"Expected no folder at {out}; found one. Choose another path with --out, or remove it.", where="out"
    )


def get_checkpoint_folder(options: PretrainingOptions, root: Root) -> Path:
    """Returns the checkpoint folder of a pretraining; it exists only while the pretraining is unfinished."""
    return root.checkpoints / f"pretraining-{pretraining.pretraining_digest(options)[:16]}"


def pretrain(
    options: PretrainingOptions,
    root: Root,
    *,
    out: Path,
    record: bool = True,
    accelerator: str = "auto",
    devices: str = "1",
    progress: Progress = NO_PROGRESS,
) -> PretrainedBundle:
    """Pretrains the network, writes its bundle, and tracks both in a run.

    Args:
        options: All that determines the weights.
        root: The root folder. A pretraining that was killed resumes from its last checkpoint when it is started again; if its
            bundle was written already, it completes the run of that bundle.
        out: A new folder for the bundle.
        record: Whether the pretraining is recorded in a run; without MLflow it cannot be.
        accelerator, devices: As for `forecaster.training.fit.fit`.
        progress: Receives the phases.
    Raises:
        InputError if the folder exists, TrainingError if the same pretraining is running, NonFiniteLoss, CheckpointMismatch.
    """
    model = find_interrupted_bundle(out, options, root)
    digest = pretraining.pretraining_digest(options)
    with lock_checkpoint_folder(get_checkpoint_folder(options, root)) as folder:
        with explain_interrupt(folder, "finished steps"), ExitStack() as stack:
            run: TrackedRun = UnrecordedRun(name=BASE_NAME)
            if record:
                run = stack.enter_context(_open_run(options, digest, root, folder))
                atomic.write_text(folder / "run_id", run.id)
                run.logger.log_hyperparams({"pretraining": options.model_dump(mode="json")})
            if model is None:
                with progress.phase("pretraining", options.steps):
                    model = pretraining.pretrain(
                        options,
                        checkpoint=folder / "last.ckpt",
                        loggers=[run.logger],
                        accelerator=accelerator,
                        devices=devices,
                        progress=progress,
                    ).model
                with progress.phase("bundle"):
                    artifact.save_bundle(model, out, card=render_pretraining_card(model))
            facts, bundle_digest = model.facts, artifact.compute_bundle_digest(out)
            run.set_tag("bundle_digest", bundle_digest)
            run.log_model_card(artifact.read_card(out))
            run.log_artifacts(out, "bundle")
            if run.is_recorded:
                run.log_headline_metrics({"train/seconds": facts["seconds"]})
                run.logger.log_metrics({"train/cpu_seconds": facts["cpu_seconds"]})
        fail_point("pretrain.recorded")
        shutil.rmtree(folder)
    return PretrainedBundle(
        out,
        bundle_digest,
        sum(path.stat().st_size for path in out.iterdir()),
        run.id if run.is_recorded else None,
        facts["loss"],
        facts["steps"],
        facts["cpu_seconds"],
    )


def _open_run(options: PretrainingOptions, digest: str, root: Root, folder: Path) -> Any:
    """Opens the run of a pretraining, or the one that an interrupted process has opened."""
    dataset = RunDataset("synthetic", digest, "forecaster/synthetic", pretraining.REFERENCE_CUTOFF)
    return open_run(
        pretraining.reference_spec(options),
        dataset,
        root=root.path,
        tracking_uri=root.tracking_uri,
        trigger="cli",
        action="pretrain",
        run_id=read_run_id(folder),
    )
