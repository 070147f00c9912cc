"""Fixtures for every kind of network with small random weights, since a law holds for any weights."""

from __future__ import annotations

from itertools import product

import pytest

from forecaster.model.regressor import Regressor
from forecaster.prediction.predictor import FittedModel
from forecaster.spec import Spec
from tests.factories import make_fitted_model, make_spec

NETWORK_KINDS = list(product(["gru", "lstm", "elman"], [1, 2], ["none", "mean_abs", "standard"]))


def kind_id(kind: tuple[str, int, str]) -> str:
    return "-".join(map(str, kind))


@pytest.fixture(params=NETWORK_KINDS, ids=kind_id)
def spec(request: pytest.FixtureRequest) -> Spec:
    cell, layers, scaling = request.param
    return make_spec(cell=cell, layers=layers, scaling=scaling)


@pytest.fixture
def model(spec: Spec) -> FittedModel:
    return make_fitted_model(spec)


@pytest.fixture
def network(model: FittedModel) -> Regressor:
    return model.network
