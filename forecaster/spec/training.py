"""The specification of the training: optimizer, windows, early stopping."""

from __future__ import annotations

from pydantic import Field

from forecaster.spec.fields import FrozenModel, InitialWeights, LearningRateSchedule, LossWeighting


class TrainingSpec(FrozenModel):
    """How the network is trained. An epoch is `epoch_steps` optimizer steps, not a pass over the data."""

    initial: InitialWeights = Field(
        default="random", description="weights that training starts from; base: those of the pretrained network"
    )
    steps: int = Field(
        default=1000, ge=0, description="maximum number of optimizer steps; 0: the initial weights are used as they are"
    )
    epoch_steps: int = Field(default=50, ge=1, description="steps between validations (and checkpoints)")
    batch: int = Field(default=64, ge=1, description="windows per optimizer step")
    learning_rate: float = Field(
        default=1e-3, gt=0.0, description="learning rate of the optimizer, after the warm-up of a schedule"
    )
    schedule: LearningRateSchedule = Field(
        default="constant", description="learning rate schedule; cosine: a short linear warm-up, then a decay to zero"
    )
    average: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="decay of the moving average of the weights, which replaces them in the fitted model; 0: no averaging",
    )
    weighting: LossWeighting = Field(
        default="none", description="seasonal_error: errors are scaled by those of the seasonal naive, as in MASE"
    )
    recent: float = Field(
        default=0.0,
        ge=0.0,
        description="mean distance of training windows from the end of their series, in horizons; 0: uniform over the series",
    )
    unroll: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="blocks after the window that a rollout network predicts free running, on its own output, during training; "
        "the number rises step by step during the first half of training",
    )
    origins: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="last segments of each window from which a direct decoder predicts during training",
    )
    gradient_clip: float = Field(default=1.0, gt=0.0, description="maximum global norm of the gradient")
    patience: int = Field(
        default=0,
        ge=0,
        description="epochs without improvement of the validation score before stopping; 0: never stop early",
    )
    valid_windows: int = Field(default=1, ge=0, description="rolling origins held out for validation at the end")
    valid_stride: int | None = Field(
        default=None,
        ge=1,
        description="steps between rolling origins; None: one horizon, so that windows do not overlap",
    )
    refit: bool = Field(
        default=False,
        description="whether to train again on all data, held-out steps included, for the best number of steps",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of the initial weights and of the training windows")
