"""Output heads: the loss, point forecast, draws and quantiles of each kind of head.

Everything is in scaled units. Outputs of zero mean "no correction": the forecast of a shiftable head is then 0 with a
spread of about 1. Gradients stay finite for outputs up to 1e12.
"""

from __future__ import annotations

from forecaster.model.heads.distribution_heads import Categorical, Gaussian, NegativeBinomial, StudentT
from forecaster.model.heads.head import MIN_SCALE, Head
from forecaster.model.heads.point_heads import Point, Quantile
from forecaster.model.heads.symbol_head import Symbols
from forecaster.spec import HeadSpec

__all__ = [
    "MIN_SCALE",
    "Categorical",
    "Gaussian",
    "Head",
    "NegativeBinomial",
    "Point",
    "Quantile",
    "StudentT",
    "Symbols",
    "create_head",
]


def create_head(spec: HeadSpec) -> Head:
    """Creates the head of a specification."""
    match spec.kind:
        case "point":
            return Point(spec.loss, spec.delta)
        case "quantile":
            return Quantile(tuple(sorted({*spec.levels, 0.5})))
        case "gaussian":
            return Gaussian()
        case "student_t":
            return StudentT()
        case "neg_binomial":
            return NegativeBinomial()
        case "categorical":
            return Categorical(spec.bins, spec.bound)
        case "symbols":
            return Symbols(len(spec.vocabulary))
