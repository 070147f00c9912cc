"""The selection among variants: errors by series and window, the simplest of equally good ones, and the reason in a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from forecaster.bundle.pretrained.specification import base_spec
from forecaster.errors import BadSpec
from forecaster.evaluation.one_standard_error import PairedDifference, SimplestChoice
from forecaster.evaluation.validation import ValidationErrors
from forecaster.metrics import nanmean
from forecaster.prediction.predictor import Predictor
from forecaster.progress import Progress
from forecaster.series import Forecast, Panel
from forecaster.training import candidates
from forecaster.training import selection as selections
from forecaster.training.fit import FitResult
from forecaster.training.selection import SpecSelection, describe_choice, describe_variant, select_on_validation
from tests.factories import make_panel, make_spec, make_wave
from tests.forecaster.training.fitting import PANEL, TRAINING, FaultInjector, SimulatedCrash, fit_on_cpu, make_fit_spec
from tests.forecaster.training.fitting import raise_crash as crash

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def fitted() -> FitResult:
    return fit_on_cpu(PANEL, make_fit_spec())


def test_a_fit_has_the_errors_of_every_series_and_window(fitted: FitResult) -> None:
    assert fitted.validation_errors is not None
    ids, errors = fitted.validation_errors
    assert ids == tuple(series.id for series in PANEL.series)
    predictor, spec = Predictor(fitted.model), fitted.model.spec
    for row, series in enumerate(PANEL.series):
        scale = np.abs(series.y[4:-10] - series.y[:-14]).mean()
        for window, offset in enumerate((10, 5)):
            forecast = predictor.forecast(series.take_first(len(series) - offset), spec.horizon)
            assert isinstance(forecast, Forecast)
            actual = series.y[len(series) - offset :][: spec.horizon]
            assert errors[row, window] == pytest.approx(np.abs(actual - forecast.mean).mean() / scale, rel=1e-4)
    assert errors.mean() == pytest.approx(fitted.scores["valid/rollout"], rel=1e-6), "those of the best epoch"


def test_windows_without_an_observation_have_no_error_and_members_are_averaged() -> None:
    y = make_wave(60)
    y[-5:] = np.nan
    panel = make_panel(make_wave(50), y)
    spec = make_fit_spec().model_copy(update={"members": 2})
    result = fit_on_cpu(panel, spec)
    assert result.validation_errors is not None
    assert np.isnan(result.validation_errors.errors).tolist() == [[False, False], [False, True]]
    assert float(nanmean(result.validation_errors.errors)) == pytest.approx(result.scores["valid/rollout"], rel=1e-6)
    assert fit_on_cpu(panel, make_fit_spec(valid_windows=0)).validation_errors is None


@pytest.mark.parametrize("has_errors", [True, False])
def test_a_resumed_fit_has_the_same_errors_also_from_a_checkpoint_of_an_earlier_version(
    fitted: FitResult, has_errors: bool, tmp_path: Path
) -> None:
    path = tmp_path / "fit.ckpt"
    with pytest.raises(SimulatedCrash):
        fit_on_cpu(PANEL, make_fit_spec(), checkpoint=path, callbacks=[FaultInjector(3, 0, crash)])
    if not has_errors:  # and whose best epoch is not reached again
        content = torch.load(path, weights_only=True)
        del content["callbacks"]["Keeper"]["origin_errors"]
        content["callbacks"]["Keeper"]["best_score"] = 0.0
        torch.save(content, path)
    resumed = fit_on_cpu(PANEL, make_fit_spec(), checkpoint=path)
    assert resumed.validation_errors is not None
    assert fitted.validation_errors is not None
    if has_errors:
        np.testing.assert_array_equal(resumed.validation_errors.errors, fitted.validation_errors.errors)
    else:
        assert resumed.validation_errors.errors.mean() == pytest.approx(resumed.scores["valid/rollout"], rel=1e-6)


def select_with_errors(
    monkeypatch: pytest.MonkeyPatch, fitted: FitResult, *results: tuple[tuple[str, ...], np.ndarray]
) -> selections.CandidateSelection:
    """Selects among specifications whose fits have given errors."""
    specs = [make_fit_spec(seed=seed) for seed in range(len(results))]

    def fit(_panel: Panel, spec, **_options: object) -> FitResult:  # type: ignore[no-untyped-def]
        return fitted._replace(validation_errors=ValidationErrors(*results[spec.training.seed]))

    monkeypatch.setattr(candidates, "fit", fit)
    return select_on_validation(PANEL, specs, accelerator="cpu")


def test_the_simplest_of_equally_good_candidates_is_selected(
    monkeypatch: pytest.MonkeyPatch, fitted: FitResult
) -> None:
    ids = tuple(map(str, range(20)))
    errors = 1 + np.random.default_rng(0).normal(size=(20, 2))
    noise = np.random.default_rng(1).normal(size=(20, 2))
    noise -= noise.mean()
    selected = select_with_errors(
        monkeypatch, fitted, (ids, errors + 0.4), (ids, errors + 0.1 * noise + 0.001), (ids, errors)
    )
    assert selected.spec == make_fit_spec(seed=1)
    assert selected.errors.index(min(selected.errors)) == 2


def test_candidates_are_compared_on_the_series_that_all_have(
    monkeypatch: pytest.MonkeyPatch, fitted: FitResult
) -> None:
    few, many = ("b", "d"), ("a", "b", "c", "d")
    rich = np.array([[1.0, 1.0], [2.0, 2.0]])
    selected = select_with_errors(monkeypatch, fitted, (few, rich), (many, np.array([[0.0] * 2, [1.5] * 2] * 2)))
    assert selected.errors == (1.5, 1.5), "the series a and c do not count"
    assert selected.spec == make_fit_spec(seed=0)


@pytest.mark.parametrize("other", [{"valid_windows": 3}, {"valid_stride": 2}, {"valid_windows": 0}])
def test_candidates_with_other_windows_are_rejected(other: dict[str, int]) -> None:
    with pytest.raises(BadSpec, match="same validation windows"):
        select_on_validation(PANEL, [make_fit_spec(), make_fit_spec(**other)])
    with pytest.raises(BadSpec, match="same validation windows"):
        select_on_validation(PANEL, [make_fit_spec(), make_spec(season=3, training=TRAINING)])


def test_a_variant_is_described_by_what_it_differs_in() -> None:
    spec = make_spec(scaling="last", transform="log", base="last", calendar=["weekday", "yearday:3"])
    assert describe_variant(spec) == "last of log, base last, calendar weekday yearday:3"


def test_the_choice_is_described_in_one_sentence() -> None:
    nothing = PairedDifference(0.0, 0.0, "20 series")
    near, far, diverged = (
        PairedDifference(0.01, 0.02, "20 series"),
        PairedDifference(0.4, 0.03, "6 windows"),
        PairedDifference(np.inf, 0.0, "nothing"),
    )
    outlier = PairedDifference(100.0, 100.0, "20 series")
    names = ["last", "seasonal", "calendar"]
    assert describe_choice(SimplestChoice(0, 1, (1.01, 1.0, 1.4), (near, nothing, far)), names, windows=5) == (
        "Variant 1 (last) is used: it is the simplest whose MASE on the 5 validation windows, 1.01, is not clearly above the "
        "lowest, 1 of variant 2 (seasonal); the difference is 0.01, its standard error 0.02 over 20 series."
    )
    assert describe_choice(SimplestChoice(1, 1, (1.4, 1.0, 1.01), (far, nothing, near)), names, windows=1) == (
        "Variant 2 (seasonal) is used: it has the lowest MASE on the validation window, 1, and the simpler variants are clearly "
        "worse: that of variant 1 is larger by 0.4, with a standard error of 0.03 over 6 windows."
    )
    described = describe_choice(
        SimplestChoice(2, 2, (np.inf, 101.0, 1.0), (diverged, outlier, nothing)), names, windows=2
    )
    assert described.endswith("variant 1 diverged; that of variant 2 is larger by 1e+02, which is more than 50% of it.")
    assert describe_choice(SimplestChoice(0, 0, (1.0, 1.4), (nothing, far)), names, windows=2).endswith(
        "it has the lowest MASE on the 2 validation windows, 1, and no variant is simpler."
    )
    every = SimplestChoice(0, 0, (np.inf, np.inf), (diverged, diverged))
    assert describe_choice(every, names, windows=2) == "Variant 1 (last) is used: all variants diverged."


def test_a_variant_without_training_has_one_member_whatever_was_requested() -> None:
    reports: list[str] = []

    class Reports(Progress):
        def report(self, result: str) -> None:
            reports.append(result)

    untrained = SpecSelection(base_spec(1, horizon=3, training={"initial": "base", "steps": 0}))
    assert untrained.limit_members(5, progress=Reports()) is None
    assert reports == ["The chosen variant is used without training, so it has one member instead of 5."]
    assert untrained.limit_members(None, progress=Reports()) is None
    assert SpecSelection(make_spec()).limit_members(5, progress=Reports()) == 5
    assert len(reports) == 1
