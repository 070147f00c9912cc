"""What a forecaster is: one whole specification, saved with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from forecaster.errors import BadSpec

Cell = Literal["gru", "lstm", "elman"]
Scaling = Literal["none", "mean_abs", "standard"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSpec(_Frozen):
    """The recurrence."""

    cell: Cell = "gru"
    layers: int = Field(default=1, ge=1, le=16)
    hidden: int = Field(default=64, ge=1, le=4096)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="between layers, while training")


class TrainingSpec(_Frozen):
    """How the network is fitted. An epoch is `epoch_steps` optimiser steps, not a pass over the data."""

    steps: int = Field(default=1000, ge=1, description="optimiser steps at the most")
    epoch_steps: int = Field(default=50, ge=1, description="steps between validations (and checkpoints)")
    batch: int = Field(default=64, ge=1, description="windows a step")
    learning_rate: float = Field(default=1e-3, gt=0.0)
    gradient_clip: float = Field(default=1.0, gt=0.0, description="largest global norm of the gradient")
    patience: int = Field(default=0, ge=0, description="epochs without a better rollout before stopping; 0: never")
    valid_windows: int = Field(default=1, ge=0, description="rolling origins held out at the end, a horizon apart")
    seed: int = Field(default=0, ge=0, lt=2**31)


class Spec(_Frozen):
    """A whole forecaster. What is not said here cannot change a forecast."""

    name: Name
    context: int = Field(ge=1, le=100_000, description="steps of history the network is trained to start from")
    horizon: int = Field(ge=1, le=100_000, description="steps ahead that validation and backtests score")
    min_history: int | None = Field(
        default=None, ge=1, description="shortest history it answers; None: the whole context"
    )
    season: int | None = Field(default=None, ge=1, description="steps of a season; None: the frequency's usual one")
    scaling: Scaling = "standard"
    network: NetworkSpec = NetworkSpec()
    training: TrainingSpec = TrainingSpec()

    @property
    def least(self) -> int:
        """Steps that a history must have; shorter than the context, it is padded."""
        return min(self.min_history or self.context, self.context)

    @classmethod
    def parse(cls, fields: Any, *, where: str) -> Self:
        """Validates plain data (from YAML or JSON); raises BadSpec with every fault and its place."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, fault['loc'])) or 'spec'}: {fault['msg']}" for fault in error.errors()
            )
            raise BadSpec(f"{where} is not a forecaster's specification: {faults}.", where=where) from error
