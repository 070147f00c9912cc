"""The options --covariate, --static and --channel of the commands that choose a preset."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from forecaster.bundle import artifact
from forecaster.errors import BadSpec, ForecasterError, RefusedByGate
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.training import selection
from pipelines.cli import app
from pipelines.commands.column_options import ColumnOptions
from pipelines.commands.options import SpecOptions, format_arguments
from pipelines.settings import Root
from pipelines.sources import read_spec
from tests.pipelines.conftest import make_noise_frame, make_small_spec

COLUMNS = ColumnOptions(covariate=("open", "price"), static=("kind",), channel=("heat",))
OPTIONS = format_arguments({"columns": COLUMNS})
FIELDS = {"covariates": ("open", "price"), "static": ("kind",), "channels": ("heat",)}


def run(*arguments: str | Path) -> None:
    app([str(argument) for argument in arguments], exit_on_error=False, result_action="return_value")


def read_columns(spec: Spec) -> dict[str, tuple[str, ...]]:
    return {"covariates": spec.covariates, "static": spec.static_columns, "channels": spec.channels}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table with further columns, whose preset is one specification that is trained in a moment."""

    def build_small_spec(panel: Panel, *, name: str, **_: object) -> list[Spec]:
        return [make_small_spec(name=name)]

    monkeypatch.setattr(selection, "build_candidate_specs", build_small_spec)
    frame, rng = make_noise_frame(series=6), np.random.default_rng(1)
    columns = {
        "open": np.where(rng.random(len(frame)) < 0.5, "yes", "no"),
        "price": rng.normal(size=len(frame)),
        "kind": np.repeat(["a", "b"], len(frame) // 2),
        "heat": rng.normal(size=len(frame)),
    }
    frame.assign(**columns).to_csv(tmp_path / "data.csv", index=False)
    return tmp_path / "data.csv"


@pytest.mark.integration
def test_a_preset_is_trained_with_the_columns(table: Path, fresh_root: Root) -> None:
    run("train", table, "--horizon", "4", *OPTIONS, "--root", fresh_root.path)
    [bundle] = (fresh_root.path / "bundles").iterdir()
    model = artifact.load_bundle(bundle)
    assert read_columns(model.spec) == FIELDS
    assert set(model.encoding.categories) == {"open"}, "a column of text is a categorical covariate"


@pytest.mark.integration
def test_a_challenger_has_the_columns_and_a_repeated_retraining_its_verdict(
    table: Path, fresh_root: Root, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with suppress(RefusedByGate):
            run("retrain", table, "--horizon", "4", *OPTIONS, "--root", fresh_root.path)
    keys = [line for line in capsys.readouterr().out.splitlines() if line.startswith("key ")]
    assert ["done before" in line for line in keys] == [False, True]
    [bundle] = (fresh_root.path / "bundles").iterdir()
    assert read_columns(artifact.load_bundle(bundle).spec) == FIELDS


@pytest.mark.integration
def test_a_search_writes_the_columns_into_its_specification(table: Path, fresh_root: Root, tmp_path: Path) -> None:
    out = tmp_path / "best.yaml"
    run("tune", table, "--horizon", "4", *OPTIONS, "--trials", "1", "--out", out, "--root", fresh_root.path)
    assert read_columns(read_spec(out)) == FIELDS


@pytest.mark.parametrize("command", ["train", "retrain", "tune"])
def test_an_unknown_column_is_refused_before_a_training(command: str, table: Path, tmp_path: Path) -> None:
    with pytest.raises(ForecasterError, match="promotion"):
        run(command, table, "--horizon", "4", "--covariate", "promotion", "--root", tmp_path / "root")


@pytest.mark.parametrize("command", ["train", "retrain", "tune"])
@pytest.mark.parametrize("option", ["--covariate", "--static", "--channel"])
def test_columns_are_refused_beside_a_specification(command: str, option: str, table: Path, tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(make_small_spec().model_dump_json())
    with pytest.raises(BadSpec, match=f"Expected either --config or {option}; found both, with price"):
        run(command, table, "--config", config, option, "price", "--root", tmp_path / "root")


def test_columns_are_refused_beside_the_specification_of_a_bundle() -> None:
    options = SpecOptions(columns=ColumnOptions(channel=("heat",)))
    with pytest.raises(BadSpec, match="Expected either --start-from or --channel"):
        options.read_spec(fallback=make_small_spec())


def test_a_schedule_keeps_the_columns() -> None:
    options = SpecOptions(horizon=4, columns=ColumnOptions(covariate=("open", "price"), static=("kind",)))
    expected = ["--horizon=4", "--covariate=open", "--covariate=price", "--static=kind"]
    assert format_arguments({"spec_options": options}) == expected
