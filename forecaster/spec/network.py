"""The specification of the recurrent network."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from forecaster.spec.fields import CellKind, FrozenModel


class NetworkSpec(FrozenModel):
    """The recurrent network. A layer of dilation d connects each step of the recurrence (a segment) to the step d before it."""

    cell: CellKind = Field(default="gru", description="cell of the recurrence")
    layers: int = Field(
        default=1, ge=1, le=16, description="layers of cells, each of which reads the outputs of the one below"
    )
    hidden: int = Field(default=64, ge=1, le=4096, description="units of the state of each layer")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout between layers, during training")
    residual: bool = Field(
        default=False, description="whether every layer above the first adds its input to its output"
    )
    dilations: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        default=(), description="dilation of each layer; (): all 1"
    )
    embed: bool = Field(
        default=False,
        description="whether a linear layer with SiLU maps the inputs to `hidden` features, which the first layer adds to its "
        "output if layers are residual, and which the decoder reads too",
    )

    @property
    def layer_dilations(self) -> tuple[int, ...]:
        """The dilation of every layer."""
        return self.dilations or (1,) * self.layers

    @model_validator(mode="after")
    def _check_dilation_count(self) -> Self:
        if self.dilations and len(self.dilations) != self.layers:
            raise ValueError(f"dilations: expected one for each of {self.layers} layers, found {len(self.dilations)}")
        return self
