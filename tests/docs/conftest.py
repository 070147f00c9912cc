"""Specifications that are trained in a moment."""

from __future__ import annotations

from typing import Any

import jaxtyping
import pytest

from forecaster.api import cross_validation, fitting, forecaster
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training import presets, selection


@pytest.fixture
def short_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets whose variants are trained for a few steps; so is a specification that a program gives to `Forecaster`."""

    def build_short_specs(*arguments: Any, **options: Any) -> list[Spec]:
        return [shorten(spec, steps=4) for spec in presets.build_candidate_specs(*arguments, **options)[:2]]

    def fit_shortly(panel: Panel, spec: Spec, *arguments: Any, **options: Any) -> Any:
        return fitting.fit_spec(panel, shorten(spec, steps=min(4, spec.training.steps)), *arguments, **options)

    monkeypatch.setattr(selection, "build_candidate_specs", build_short_specs)
    for module in (forecaster, cross_validation):
        monkeypatch.setattr(module, "fit_spec", fit_shortly)


@pytest.fixture
def unchecked_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls without checks of their arrays, as users make them: a page shows that its programs run, and takes their time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def shorten(spec: Spec, *, steps: int) -> Spec:
    training = {"steps": steps, "epoch_steps": 2, "batch": 8}
    return spec.model_copy(update={"training": spec.training.model_copy(update=training)})
