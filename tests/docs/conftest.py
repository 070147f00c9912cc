"""Presets that are trained in a moment."""

from __future__ import annotations

from typing import Any

import pytest

from forecaster.spec import Spec
from forecaster.training import presets, selection


@pytest.fixture
def short_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets whose variants are trained for a few steps."""

    def build_short_specs(*arguments: Any, **options: Any) -> list[Spec]:
        specs = presets.build_candidate_specs(*arguments, **options)
        training = {"steps": 4, "epoch_steps": 2, "batch": 8}
        return [spec.model_copy(update={"training": spec.training.model_copy(update=training)}) for spec in specs[:2]]

    monkeypatch.setattr(selection, "build_candidate_specs", build_short_specs)
