"""Cross-validation and evaluation use nothing that lies after an origin, and say what was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster import Forecaster, InputError
from forecaster.api import DataWarning
from forecaster.progress import Progress
from tests.forecaster.api.conftest import HORIZON, STEPS, make_fields, make_frame

pytestmark = pytest.mark.filterwarnings("ignore:On the test windows:forecaster.api.ForecastWarning")


class FitCounter(Progress):
    """Counts the fits and the phases that were announced."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def begin(self, name: str, total: int | None = None) -> None:
        self.phases.append(name)


def shift_future(frame: pd.DataFrame, first_step: int) -> pd.DataFrame:
    """Returns the frame with other values from a step on."""
    step = np.tile(np.arange(STEPS), 3)
    return frame.assign(y=frame["y"].where(step < first_step, 1000 - 3 * frame["y"]))


def new_forecaster(**fields: Any) -> Forecaster:
    return Forecaster(spec=make_fields(**fields), accelerator="cpu")


def test_the_columns_are_those_of_nixtla_and_hold_the_actuals(model: Forecaster, frame: pd.DataFrame) -> None:
    table = model.cross_validation(frame, n_windows=2, step_size=3, level=80, progress=False)
    assert list(table.columns) == [
        "unique_id",
        "ds",
        "cutoff",
        "y",
        "forecaster",
        "forecaster-lo-80",
        "forecaster-hi-80",
    ]
    assert len(table) == 3 * 2 * HORIZON
    merged = table.merge(frame, on=["unique_id", "ds"], suffixes=("", "_actual"))
    assert (merged["y"] == merged["y_actual"]).all()
    offsets = table.groupby("unique_id")["cutoff"].unique().iloc[0]
    assert [str(value)[:7] for value in offsets] == ["2019-03", "2019-06"]
    assert (table["ds"] > table["cutoff"]).all()


@pytest.mark.parametrize("refit", [False, True])
def test_values_after_an_origin_change_none_of_its_forecasts(refit: bool, frame: pd.DataFrame) -> None:
    """Neither through the histories nor through the fit, the calibration or the choice of the best epoch."""
    first_origin, second_origin = STEPS - 2 * HORIZON, STEPS - HORIZON
    tables = [
        new_forecaster().cross_validation(given, n_windows=2, refit=refit, level=80, progress=False)
        for given in (frame, shift_future(frame, first_origin), shift_future(frame, second_origin))
    ]
    columns = ["forecaster", "forecaster-lo-80", "forecaster-hi-80"]
    is_first = tables[0]["cutoff"] == tables[0]["cutoff"].min()
    original, changed_from_first, changed_from_second = (table[columns] for table in tables)
    pd.testing.assert_frame_equal(original[is_first], changed_from_first[is_first])
    pd.testing.assert_frame_equal(original, changed_from_second)  # actuals of the last window are no input
    assert (original[~is_first] != changed_from_first[~is_first]).all(axis=None)


def test_one_model_serves_all_origins_unless_refit(frame: pd.DataFrame) -> None:
    for refit, fits in ((False, 1), (True, 3)):
        counter = FitCounter()
        forecaster = new_forecaster()
        forecaster.cross_validation(frame, n_windows=3, refit=refit, progress=counter)
        assert counter.phases.count("fit") == fits
        with pytest.raises(InputError, match=r"fit\(df\)"):
            forecaster.predict()  # it stays as it was


def test_a_model_that_was_fitted_before_the_first_origin_is_used_as_it_is(frame: pd.DataFrame) -> None:
    forecaster, counter = new_forecaster(), FitCounter()
    step = np.tile(np.arange(STEPS), 3)
    forecaster.fit(frame[step < STEPS - 2 * HORIZON], test_windows=0, progress=False)
    table = forecaster.cross_validation(frame, n_windows=2, progress=counter)
    assert counter.phases == []
    last = table[table["cutoff"] == table["cutoff"].max()]["forecaster"].to_numpy()
    np.testing.assert_allclose(last, forecaster.predict(frame[step < STEPS - HORIZON])["forecaster"], rtol=1e-5)
    forecaster.cross_validation(frame, n_windows=3, progress=counter)
    assert "fit" in counter.phases, "the first origin lies before the training cutoff"


def test_series_that_are_too_short_are_left_out_with_a_warning(model: Forecaster, frame: pd.DataFrame) -> None:
    short = make_frame(series=1, steps=8, start="2019-05-01").assign(unique_id=9)
    with pytest.warns(DataWarning, match="1 of 4 series are too short"):
        table = model.cross_validation(pd.concat([frame, short]), n_windows=1, progress=False)
    assert set(table["unique_id"]) == {1, 2, 3}


def test_an_evaluation_scores_data_after_the_training_cutoff(model: Forecaster, frame: pd.DataFrame) -> None:
    """The test windows of the fit lie after it, so that the scores are those of the report."""
    table = model.evaluate()
    assert table["forecaster"].tolist() == ["forecaster", "seasonal_naive", "last_value", "zero_shot"]
    assert not table["in_sample"].any()
    assert table["windows"].tolist() == [3] * 4
    report = model.report.set_index("forecaster")
    for metric in ("mase", "rmsse", "smape", "mae"):
        np.testing.assert_allclose(table.set_index("forecaster")[metric], report.loc[table["forecaster"], metric])
    assert {"wql", "msis_95", "coverage_80", "coverage_95"} <= set(table.columns)
    shifted = model.evaluate(shift_future(frame, STEPS - HORIZON)).set_index("forecaster")
    ratio = shifted["mae"] / table.set_index("forecaster")["mae"]
    assert (ratio > 10).all(), "the actuals are scored"


def test_training_data_are_refused_or_marked(model: Forecaster, frame: pd.DataFrame) -> None:
    step = np.tile(np.arange(STEPS), 3)
    with pytest.raises(
        InputError, match=r"Expected 12 rows after the training cutoff 2019-06-01.*found 6.*`in_sample=True`"
    ):
        model.evaluate(frame, n_windows=2)
    with pytest.raises(InputError, match="found 0"):
        model.evaluate(frame[step < STEPS - HORIZON])
    table = model.evaluate(frame, n_windows=3, in_sample=True)
    assert table["in_sample"].tolist() == [False] * 4 + [True] * 4
    assert table["windows"].tolist() == [3] * 4 + [6] * 4
    np.testing.assert_allclose(table["mae"][:4], model.evaluate(frame)["mae"], rtol=1e-5)


def test_windows_of_single_series_that_reach_into_the_training_data_are_not_scored_silently(
    model: Forecaster, frame: pd.DataFrame
) -> None:
    step = np.tile(np.arange(STEPS), 3)
    ends_early = frame[(frame["unique_id"] != 3) | (step < STEPS - HORIZON)]
    with pytest.warns(DataWarning, match="1 windows begin before the training cutoff"):
        table = model.evaluate(ends_early)
    assert table["windows"].tolist() == [2] * 4


def test_the_phases_of_a_fit_are_announced(frame: pd.DataFrame) -> None:
    counter = FitCounter()
    fields = make_fields()
    fields["training"] |= {"refit": True}
    Forecaster(spec=fields, accelerator="cpu").fit(frame, progress=counter)
    assert [name for name in counter.phases if name in {"fit", "calibration", "refit", "test"}] == [
        "fit",
        "calibration",
        "refit",
        "test",
    ]
