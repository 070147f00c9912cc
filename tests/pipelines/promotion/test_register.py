"""The registration of a bundle that was trained elsewhere: on another machine, or without tracking."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from forecaster.bundle import artifact
from forecaster.registry.registry import Registry, create_client
from pipelines.promotion.promote import promote_version, register_bundle
from pipelines.settings import Root
from tests.factories import make_fitted_model, make_spec

pytestmark = pytest.mark.integration

SCORES = {"mase": 0.9, "rmsse": 0.8, "smape": 12.0, "mae": None}


def write_bundle(folder: Path) -> str:
    """Writes a bundle of a run that no store here has; returns its digest."""
    facts = {"run_id": "0" * 32, "backtest": {"challenger": SCORES, "seasonal_naive": {**SCORES, "mase": 1.0}}}
    return artifact.save_bundle(replace(make_fitted_model(make_spec()), facts=facts), folder, card="# Elsewhere\n")


def test_a_bundle_made_elsewhere_gets_a_run_with_its_scores_and_its_card(fresh_root: Root, tmp_path: Path) -> None:
    digest = write_bundle(tmp_path / "bundle")
    version = register_bundle(tmp_path / "bundle", fresh_root)
    assert (version.number, version.digest) == ("1", digest)
    assert version.run_id is not None
    run = create_client(fresh_root.store_uri).get_run(version.run_id)
    assert run.info.run_name.startswith(f"{version.name} register 2")
    assert run.info.status == "FINISHED"
    assert (
        run.data.tags.items()
        >= {
            "trigger": "register",
            "trained_by": "0" * 32,
            "bundle_digest": digest,
            "mlflow.note.content": "# Elsewhere\n",
        }.items()
    )
    assert run.data.metrics == {"bt/mase": 0.9, "bt/rmsse": 0.8, "bt/smape": 12.0}
    assert register_bundle(tmp_path / "bundle", fresh_root) == version, "the second call changes nothing"
    assert promote_version(version.name, fresh_root, version_number="1", force=False) == version
    fetched = Registry(fresh_root.store_uri).fetch(version, tmp_path / "fetched")
    assert artifact.compute_bundle_digest(fetched) == digest


def test_a_bundle_without_a_run_is_registered(fresh_root: Root, tmp_path: Path) -> None:
    artifact.save_bundle(make_fitted_model(make_spec()), tmp_path / "bundle", card="")
    version = register_bundle(tmp_path / "bundle", fresh_root)
    assert version.run_id is not None
    assert "trained_by" not in create_client(fresh_root.store_uri).get_run(version.run_id).data.tags
