"""What a training reports while it runs, and what an interrupted selection keeps."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from forecaster.errors import NonFiniteLoss
from forecaster.progress import Progress
from forecaster.spec import Spec
from forecaster.training import candidates as candidates_module
from forecaster.training import selection as selections
from forecaster.training.fit import fit
from forecaster.training.lightning import pl
from forecaster.training.selection import CandidateSelection, select_on_validation, select_spec
from forecaster.training.sequence import train_model
from tests.elsewhere import run_elsewhere
from tests.factories import make_panel, make_spec, make_wave
from tests.forecaster.training.fitting import PANEL, TRAINING, fit_on_cpu, make_fit_spec


class RecordedProgress(Progress):
    """Records phases, updates and reports; raises KeyboardInterrupt at an update, as a signal would."""

    def __init__(self, interrupt_at: tuple[str, int] | None = None) -> None:
        self.phases: list[tuple[str, int | None]] = []
        self.updates: dict[str, list[int]] = {}
        self.results: dict[str, str] = {}
        self.reports: list[str] = []
        self.failed: list[str] = []
        self._interrupt_at = interrupt_at

    def begin(self, name: str, total: int | None = None) -> None:
        self.phases.append((name, total))
        self.updates[name] = []

    def update(self, completed: int, detail: str = "") -> None:
        name = self.phases[-1][0]
        self.updates[name].append(completed)
        self.results[name] = detail
        if (name, completed) == self._interrupt_at:
            raise KeyboardInterrupt

    def report(self, result: str) -> None:
        self.reports.append(result)

    def end(self, *, failed: bool = False) -> None:
        if failed:
            self.failed.append(self.phases[-1][0])


def test_a_fit_reports_its_steps_and_errors() -> None:
    progress = RecordedProgress()
    with progress.phase("fit", 11):
        fitted = fit(PANEL, make_fit_spec(), accelerator="cpu", progress=progress, label="small", steps_per_chunk=2)
    assert progress.updates["fit"] == sorted(progress.updates["fit"])
    assert set(progress.updates["fit"]) == {0, 2, 3, 5, 6, 8, 9, 11}
    assert re.fullmatch(r"epoch 4 of 4, MASE \d+\.\d+, small", progress.results["fit"])
    assert fitted.steps == 11


def test_lightning_is_silent(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    levels = [logging.getLogger(name).level for name in ("pytorch_lightning", "lightning_fabric")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # the second one resumes a finished fit
            fit_on_cpu(PANEL, make_fit_spec(), checkpoint=tmp_path / "fit.ckpt")
    assert [str(warning.message) for warning in caught] == []
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")
    assert [logging.getLogger(name).level for name in ("pytorch_lightning", "lightning_fabric")] == levels


def test_lightning_is_imported_from_one_module_and_works_with_the_whole_torchmetrics() -> None:
    """The placeholders must not be seen by anybody else in the process."""
    assert "torch._dynamo" not in sys.modules or hasattr(sys.modules["torch._dynamo"], "optimize")
    torchmetrics = sys.modules["torchmetrics"]
    assert torchmetrics.__version__
    assert torchmetrics.Metric is sys.modules["torchmetrics.metric"].Metric
    assert not hasattr(torchmetrics, "__wrapped__")
    assert torchmetrics.utilities.plot.plot_curve
    assert pl.__version__


def make_candidates() -> list[Spec]:
    return [
        make_spec(layers=2, dropout=0.4, scaling=scaling, training=TRAINING | {"seed": seed})
        for seed, scaling in enumerate(("standard", "last", "none"))
    ]


@pytest.fixture(scope="module")
def uninterrupted() -> CandidateSelection:
    return select_on_validation(PANEL, make_candidates(), accelerator="cpu")


@pytest.mark.parametrize("interrupt_at", [("variant 1 of 3", 3), ("variant 2 of 3", 9), ("variant 3 of 3", 11)])
def test_an_interrupted_selection_resumes_its_variant_and_repeats_no_finished_one(
    uninterrupted: CandidateSelection, interrupt_at: tuple[str, int], tmp_path: Path
) -> None:
    folder, name = tmp_path / "variants", interrupt_at[0]
    first = RecordedProgress(interrupt_at)
    with pytest.raises(KeyboardInterrupt):
        select_on_validation(PANEL, make_candidates(), accelerator="cpu", checkpoint_folder=folder, progress=first)
    assert first.failed == [name]
    second = RecordedProgress()
    resumed = select_on_validation(
        PANEL, make_candidates(), accelerator="cpu", checkpoint_folder=folder, progress=second
    )
    assert resumed == uninterrupted, "bitwise the errors of an uninterrupted selection"
    for finished, _ in first.phases[:-1]:
        assert set(second.updates[finished]) == {11}, "it is loaded rather than repeated"
    interrupted_steps = second.updates[name]
    assert interrupted_steps[0] == interrupt_at[1] - 3 or interrupt_at[1] == 11, "the interrupted epoch is repeated"


def test_variants_that_are_fitted_elsewhere_are_selected_as_here(uninterrupted: CandidateSelection) -> None:
    progress = RecordedProgress()
    selection = select_on_validation(
        PANEL, make_candidates(), accelerator="cpu", run_steps=run_elsewhere, progress=progress
    )
    assert selection == uninterrupted, "bitwise the errors, in the order of the candidates"
    assert progress.phases == [("variants", 3)]
    assert progress.updates["variants"] == [1, 2, 3]


def test_a_diverging_variant_is_named_and_not_selected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real_fit = candidates_module.fit

    def fit_or_diverge(panel, spec, **options):  # type: ignore[no-untyped-def]
        if spec.scaling == "standard":
            raise NonFiniteLoss("Expected a finite loss; found NaN. Lower the learning rate.", where="train/loss")
        return real_fit(panel, spec, **options)

    monkeypatch.setattr(candidates_module, "fit", fit_or_diverge)
    progress = RecordedProgress()
    candidates = make_candidates()[:2]
    selection = select_on_validation(PANEL, candidates, accelerator="cpu", progress=progress)
    assert selection.spec == candidates[1]
    assert progress.results["variant 1 of 2"] == "standard, base zero: diverged"


def test_the_used_variant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selections, "build_candidate_specs", lambda *_, **__: make_candidates()[:2])
    monkeypatch.setattr(selections, "build_base_variants", lambda *_: [])
    progress = RecordedProgress()
    selected = select_spec(PANEL, name="any", horizon=5, test_windows=0, accelerator="cpu", progress=progress)
    [number] = [number for number, candidate in enumerate(selected.candidates, start=1) if candidate.is_chosen]
    [report] = progress.reports
    assert report == selected.reason
    assert report.startswith(f"Variant {number} ({selected.spec.scaling}, base zero) is used: it ")
    assert "MASE on the 2 validation windows" in report
    assert [name for name, _ in progress.phases] == ["variant 1 of 2", "variant 2 of 2"]


def test_a_selection_without_a_finite_error_is_not_called_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: object, **__: object) -> None:
        raise NonFiniteLoss("Expected a finite loss; found NaN. Lower the learning rate.", where="train/loss")

    monkeypatch.setattr(candidates_module, "fit", diverge)
    progress = RecordedProgress()
    select_spec(PANEL, name="any", horizon=5, test_windows=0, accelerator="cpu", progress=progress)
    [report] = progress.reports
    assert report.endswith(" is used: all variants diverged.")


def test_a_training_reports_all_phases_in_order() -> None:
    progress = RecordedProgress()
    spec = make_fit_spec(refit=True)
    trained = train_model(PANEL, spec, test_windows=2, accelerator="cpu", progress=progress)
    names = [name for name, _ in progress.phases]
    assert names == ["fit", "calibration", "refit", "test"]
    assert dict(progress.phases)["fit"] == 11
    assert dict(progress.phases)["refit"] == trained.fitted.best_steps
    assert trained.backtest is not None
    assert progress.updates["test"][-1] == dict(progress.phases)["test"] == 4 * 2 * len(trained.backtest.series)
    assert progress.results["test"] == f"{len(trained.backtest.series)} series, 2 windows"


def test_a_training_that_loses_against_a_baseline_says_so_and_what_to_try() -> None:
    panel = make_panel(*(make_wave(80, seed=seed) for seed in range(3)))
    spec = make_spec(season=24, scaling="none", training=TRAINING | {"learning_rate": 1e-9, "valid_windows": 1})
    advice = train_model(panel, spec, accelerator="cpu").advice
    assert advice is not None
    assert advice.startswith("On the test windows the model has a MASE of ")
    assert "seasonal naive" in advice
    assert "last value" in advice
    for suggestion in ("use the preset", "(`blend`)", "(`members`)", "because 3 are little evidence"):
        assert suggestion in advice


def test_a_training_that_wins_gives_no_advice() -> None:
    panel = make_panel(*(make_wave(80, seed=seed) for seed in range(3)))
    training = {"steps": 60, "epoch_steps": 20, "batch": 16, "learning_rate": 0.02, "valid_windows": 1}
    spec = make_spec(training=training, scaling="standard", base="seasonal_naive", season=24)
    trained = train_model(panel, spec, accelerator="cpu")
    assert trained.backtest is not None
    scores = {name: trained.backtest.scores(name)["mase"] for name in trained.backtest.forecasts}
    assert (trained.advice is None) == (scores["challenger"] < min(scores["seasonal_naive"], scores["last_value"])), (
        scores
    )


def test_a_training_that_loses_against_the_last_value_alone_names_it() -> None:
    steps = np.arange(90)
    panel = make_panel(*(np.where(steps % 40 < 20, 1.0, 5.0) + 0.01 * make_wave(90, seed=seed) for seed in range(3)))
    spec = make_spec(season=7, base="seasonal_naive", training=TRAINING | {"learning_rate": 1e-9, "valid_windows": 1})
    advice = train_model(panel, spec, accelerator="cpu").advice
    assert advice is not None
    assert re.search(r": the last value and the pretrained network are at least as good as this model\.", advice), (
        advice
    )
