"""The bounds of forecasts: how they are specified, decided at training, stored, switched off by a history, and applied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.bundle.pretrained.base import base_predictor, load_base, specialize_base, specialize_to_panel
from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.errors import BadSpec
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.blend_weights import fit_blend
from forecaster.evaluation.calibration import add_quantiles, calibrate_model
from forecaster.explain.attribution import explain
from forecaster.intervals.conformal import calibrate
from forecaster.ledger.adaptive import fit_adaptive_state
from forecaster.ledger.recording import ModelIdentity, SeriesNaming, build_records
from forecaster.prediction.bounds import (
    EACH_HISTORY,
    NON_NEGATIVE_FACT,
    Bounds,
    RowBounds,
    find_extremes,
    without_bounds,
)
from forecaster.prediction.fitted_model import FittedModel
from forecaster.prediction.predictor import Predictor
from forecaster.series import Forecast, Panel
from forecaster.series.history_summary import drop_and_summarize
from forecaster.spec import Spec
from forecaster.training.fit import fit
from serving.formats.state_payload import decode_payload, encode_payload
from serving.formats.timestamps import TimestampStyle
from tests.factories import make_fitted_model, make_panel, make_series, make_spec, make_wave

HORIZON, NAN = 8, float("nan")
FALLING = np.arange(40.0, 0.0, -1.0)
CASES = Path(__file__).parents[4] / "shared" / "cases"
NEGATIVE_WARNING = (
    "The history has negative values, and the data that the model was trained on have none: the forecast is not "
    "bounded at zero."
)


def make_model(*, fact: Any = True, **fields: Any) -> FittedModel:
    facts = {} if fact is None else {NON_NEGATIVE_FACT: fact}
    errors = np.random.default_rng(0).normal(size=(30, 4, 5))
    return replace(make_fitted_model(make_spec(**fields)), facts=facts, calibration=calibrate(errors, np.ones(30)))


def make_counts(*, seed: int = 0) -> np.ndarray:
    """Returns falling counts with zeros, for which an unbounded forecast has negative values."""
    return np.maximum(np.round(8 * make_wave(40, seed=seed) - 3 - 0.2 * np.arange(40)), 0.0)


def forecast(model: FittedModel, y: np.ndarray) -> Forecast:
    return Predictor(model).forecast(make_series(y), HORIZON, levels=(0.05, 0.95))


def find_lowest(result: Forecast) -> float:
    return float(min(result.mean.min(), *(values.min() for values in result.quantiles.values())))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lower": 2.0, "upper": 2.0}, "lower: expected less than upper 2, found 2"),
        ({"lower": float("nan")}, "lower: "),
        ({"upper": float("inf")}, "upper: "),
        ({"non_negative": True, "upper": -1.0}, "upper: expected more than zero"),
        ({"non_negative": "yes"}, "non_negative: "),
        ({"non_negative": False, "scaling": "none", "head": {"kind": "neg_binomial"}}, "never below zero"),
    ],
)
def test_bounds_that_contradict_each_other_are_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSpec, match=message):
        make_spec(**fields)


def test_the_specification_with_bounds_survives_json_and_its_identity_without_them_is_that_of_before() -> None:
    plain, bounded = make_spec(), make_spec(lower=-1.5, upper=3, non_negative=True)
    assert Spec.model_validate_json(bounded.model_dump_json()) == bounded
    assert not {"lower", "upper", "non_negative"} & set(json.loads(plain.to_identity_json()))
    identities = {plain.to_identity_json(), bounded.to_identity_json(), make_spec(lower=0).to_identity_json()}
    assert len(identities) == 3


@pytest.mark.parametrize(
    ("fact", "non_negative", "zero"),
    [
        (None, "auto", "never"),
        (False, "auto", "never"),
        (True, "auto", "training_data"),
        (EACH_HISTORY, "auto", "each_history"),
        (1, "auto", "never"),
        ([True], "auto", "never"),
        (None, True, "specification"),
        (False, True, "specification"),
        (True, False, "never"),
        (EACH_HISTORY, False, "never"),
    ],
)
def test_the_specification_prevails_over_the_decision_of_training(fact: Any, non_negative: Any, zero: str) -> None:
    bounds = Predictor(make_model(fact=fact, non_negative=non_negative)).bounds
    assert bounds == Bounds(zero=zero)  # type: ignore[arg-type]
    assert bounds.is_active == (zero != "never")


def test_a_model_of_an_earlier_version_is_forecast_without_bounds() -> None:
    model = make_model(fact=None)
    result = forecast(model, make_counts())
    assert find_lowest(result) < 0
    expected = forecast(without_bounds(model), make_counts())
    np.testing.assert_array_equal(result.mean, expected.mean)
    assert result.warnings == expected.warnings


@pytest.mark.parametrize(
    ("fields", "y", "expected", "warnings"),
    [
        ({}, [0.0, 5.0], (0.0, np.inf), []),
        ({}, [NAN, -0.0, 5.0], (0.0, np.inf), []),
        ({}, [-1e-9, 5.0], (-np.inf, np.inf), [NEGATIVE_WARNING]),
        ({"non_negative": True}, [-1.0], (-np.inf, np.inf), ["although the specification of the model"]),
        ({"lower": 2.0}, [2.0, NAN], (2.0, np.inf), []),
        ({"lower": 2.0}, [1.0], (0.0, np.inf), ["below the model's lower bound of 2"]),
        ({"lower": 2.0}, [-1.0], (-np.inf, np.inf), ["below the model's lower bound of 2", NEGATIVE_WARNING]),
        ({"lower": 0.0}, [-1.0], (-np.inf, np.inf), ["below the model's lower bound of 0"]),
        ({"lower": -2.0}, [3.0], (0.0, np.inf), []),
        ({"lower": -2.0}, [-1.0], (-2.0, np.inf), [NEGATIVE_WARNING]),
        (
            {"lower": -2.0, "upper": 3.0},
            [-3.0, 4.0],
            (-np.inf, np.inf),
            ["of -2", NEGATIVE_WARNING, "upper bound of 3"],
        ),
        ({"upper": 3.0}, [3.0], (0.0, 3.0), []),
        ({"upper": -1.0}, [3.0], (0.0, np.inf), ["above the model's upper bound of -1"]),
        ({"upper": -1.0}, [-3.0], (-np.inf, -1.0), [NEGATIVE_WARNING]),
    ],
)
def test_a_history_outside_a_bound_switches_it_off_with_a_warning(
    fields: dict[str, Any], y: list[float], expected: tuple[float, float], warnings: list[str]
) -> None:
    inside = make_series(np.full(3, max(0.0, fields.get("lower", 0.0))))
    bounds = Predictor(make_model(**fields)).bounds.for_series([inside, make_series(np.array(y)), inside])
    assert (bounds.lower[1], bounds.upper[1]) == expected
    found = bounds.warnings.get(1, ())
    assert len(found) == len(warnings)
    assert all(part in warning for part, warning in zip(warnings, found, strict=True)), found


def test_a_negative_history_gets_one_warning_and_affects_no_other_series() -> None:
    model, negative = make_model(), make_counts() - 1
    batch = [make_series(make_counts(), name="a"), make_series(negative, name="b"), make_series(np.ones(1), name="c")]
    bounded, unbounded, invalid = Predictor(model).forecast_batch(batch, HORIZON, levels=(0.05,))
    assert isinstance(bounded, Forecast)
    assert isinstance(unbounded, Forecast)
    assert not isinstance(invalid, Forecast)
    assert find_lowest(bounded) >= 0 > find_lowest(unbounded)
    assert NEGATIVE_WARNING not in bounded.warnings
    assert unbounded.warnings.count(NEGATIVE_WARNING) == 1


def test_a_constant_history_is_forecast_as_before_and_its_intervals_are_bounded() -> None:
    result = forecast(make_model(), np.zeros(20))
    assert result.mean.tolist() == [0.0] * HORIZON
    assert find_lowest(result) == 0
    assert (result.quantiles[0.95] > 0).all()
    negative = forecast(make_model(), np.full(20, -3.0))
    assert negative.mean.tolist() == [-3.0] * HORIZON


def test_what_is_not_finite_is_not_clipped() -> None:
    values = np.array([[-np.inf, -1.0, NAN, np.inf], [-5.0, 0.5, 2.0, np.inf]])
    clipped = RowBounds(np.array([0.0, -np.inf]), np.array([np.inf, 1.0])).clip(values)
    np.testing.assert_array_equal(clipped, [[-np.inf, 0.0, NAN, np.inf], [-5.0, 0.5, 1.0, np.inf]])
    assert values[0, 1] == -1, "the argument stays as it is"


@pytest.mark.parametrize("count", [1, 5, 2500])
def test_the_extremes_of_many_histories_are_those_of_each(count: int) -> None:
    rng = np.random.default_rng(count)
    series = [make_series(rng.normal(size=rng.integers(1, 9))) for _ in range(count)]
    series[0].y[:] = NAN
    found = np.stack(find_extremes(series), axis=1)
    expected = [[NAN, NAN], *([item.y.min(), item.y.max()] for item in series[1:])]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(4))
def test_the_extremes_of_dropped_steps_are_kept(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.where(rng.random(60) < 0.4, NAN, rng.normal(size=60))
    y[:10] = NAN
    held, summary, count = y[:20], None, 20
    for until in (25, 26, 33, 60):
        held, summary = drop_and_summarize(held, summary, cut=len(held) - 9, season=4)
        held, count = np.concatenate([held, y[count:until]]), until
        lowest, highest = find_extremes([replace(make_series(held), history_summary=summary)])
        assert (lowest[0], highest[0]) == (np.nanmin(y[:until]), np.nanmax(y[:until]))


def test_a_state_has_the_extremes_only_for_models_with_bounds() -> None:
    series, style = make_series(make_counts() - 1), TimestampStyle("T", "m", "")
    payloads = {}
    for name, model in {"bounded": make_model(), "earlier": make_model(fact=None)}.items():
        truncated = Predictor(model).truncate_history(series)
        payloads[name] = encode_payload(truncated, style, encoding=EMPTY_ENCODING)
        summary = decode_payload(payloads[name], encoding=EMPTY_ENCODING).series.history_summary
        assert summary is not None
        lowest, highest = (-1.0, 6.0) if name == "bounded" else (NAN, NAN)
        np.testing.assert_array_equal((summary.lowest, summary.highest), (lowest, highest))
    assert b"extremes" in payloads["bounded"]
    assert b"extremes" not in payloads["earlier"], "older versions of the service read it"
    earlier = decode_payload(payloads["earlier"], encoding=EMPTY_ENCODING).series
    unknown = Predictor(make_model()).forecast(replace(earlier, y=np.maximum(earlier.y, 0)), HORIZON)
    assert NEGATIVE_WARNING not in unknown.warnings, "what is unknown switches no bound off"


@pytest.mark.parametrize(
    ("values", "decision"),
    [
        ([make_counts(), make_counts(seed=1)], True),
        ([make_counts(), make_counts(seed=1) - 1], False),
        ([make_counts(), np.full(30, NAN)], True),
    ],
)
@pytest.mark.parametrize("training", [{"steps": 2, "epoch_steps": 1, "batch": 4, "valid_windows": 1}])
def test_a_fit_decides_by_its_panel(values: list[np.ndarray], decision: bool, training: dict[str, Any]) -> None:
    model = fit(make_panel(*values), make_spec(training=training)).model
    assert model.facts[NON_NEGATIVE_FACT] is decision
    assert Predictor(model).bounds.zero == ("training_data" if decision else "never")


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_a_fit_of_the_pretrained_network_decides_by_its_panel(shift: float) -> None:
    panel = Panel([replace(item, freq="MS") for item in make_panel(make_counts() + shift).series], "MS")
    spec = specialize_to_panel(panel, horizon=6).spec
    fields = spec.model_dump() | {"training": {"initial": "base", "steps": 0}}
    assert fit(panel, Spec.parse(fields, where="a test")).model.facts[NON_NEGATIVE_FACT] is (shift == 0)


def test_the_decision_is_a_part_of_the_bundle(tmp_path: Path) -> None:
    for name, model in {
        "bounded": make_model(),
        "earlier": make_model(fact=None),
        "free": make_model(fact=False),
    }.items():
        artifact.save_bundle(model, tmp_path / name, card="# small\n")
        loaded = artifact.load_predictor(tmp_path / name)
        assert loaded.bounds == Predictor(model).bounds
        expected = forecast(model, make_counts())
        result = loaded.forecast(make_series(make_counts()), HORIZON, levels=(0.05, 0.95))
        np.testing.assert_allclose(result.mean, expected.mean, rtol=1e-5, atol=1e-6)
        assert (find_lowest(result) >= 0) == (name == "bounded")


def test_bounds_do_not_hide_that_a_bundle_predicts_otherwise(tmp_path: Path) -> None:
    model = make_model(lower=1e6, upper=2e6)
    artifact.save_bundle(model, tmp_path / "high", card="# high\n")
    golden = json.loads((tmp_path / "high" / "golden.json").read_text())
    assert all(abs(value) < 1e5 for request in golden["requests"] for value in request["mean"])


def test_the_pretrained_network_is_bounded_at_zero_by_each_history_without_a_warning(tmp_path: Path) -> None:
    assert load_base().facts[NON_NEGATIVE_FACT] == EACH_HISTORY
    predictor = base_predictor("D", horizon=30)
    falling = 40 - np.arange(40.0) + np.sin(np.arange(40))
    falling -= falling.min()
    batch = [make_series(y, name=name, freq="D") for name, y in {"a": falling, "b": falling - 1}.items()]
    bounded, unbounded = predictor.forecast_batch(batch, 30, levels=(0.1, 0.9))
    assert isinstance(bounded, Forecast)
    assert isinstance(unbounded, Forecast)
    assert find_lowest(bounded) == 0
    assert find_lowest(unbounded) < -1
    assert not any("bounded" in warning for warning in (*bounded.warnings, *unbounded.warnings))
    artifact.save_bundle(specialize_base("D", horizon=30).to_fitted_model(), tmp_path / "base", card="# base\n")
    saved = artifact.load_predictor(tmp_path / "base").forecast(batch[0], 30, levels=(0.1, 0.9))
    np.testing.assert_allclose(saved.quantiles[0.1], bounded.quantiles[0.1], atol=1e-4)


def test_quantiles_of_a_backtest_are_those_of_the_predictor_and_intervals_are_calibrated_on_clipped_means() -> None:
    panel = make_panel(*(make_counts(seed=seed) for seed in range(30)))
    model = replace(make_model(), calibration=None)
    result = backtest(panel, {"model": Predictor(model)}, horizon=5, windows=4, season=4)
    assert result.forecasts["model"].min() == 0
    calibrated, unbounded = (
        calibrate_model(model, panel, windows=4),
        calibrate_model(without_bounds(model), panel, windows=4),
    )
    assert calibrated.calibration != unbounded.calibration
    quantiles = add_quantiles(result, {"model": calibrated}, levels=(0.05, 0.95)).quantiles["model"]
    assert quantiles.min() == 0
    for window, offset in enumerate(result.origin_offsets):
        outcomes = Predictor(calibrated).forecast_batch(
            [item.take_first(len(item) - offset) for item in panel.series], 5, levels=(0.05, 0.95)
        )
        expected = [np.stack([*item.quantiles.values()], axis=1) for item in outcomes if isinstance(item, Forecast)]
        np.testing.assert_allclose(quantiles[:, window], expected, rtol=1e-5, atol=1e-5)


def test_the_ledger_records_bounded_means_and_the_quantiles_from_which_intervals_adapt() -> None:
    model, series = make_model(base="linear"), [make_series(FALLING)]
    identity, naming = ModelIdentity("small", "1", "0" * 64), SeriesNaming(salt=b"0" * 32, keep_ids=True)
    predictor = Predictor(model)
    forecasts = [predictor.forecast(item, HORIZON, levels=(0.1,)) for item in series]
    [record] = build_records(predictor, identity, series, forecasts, naming=naming, adaptive_state=None, made_at=[0.0])
    assert min(record.mean) == 0
    assert min(record.quantiles[0.1]) < 0
    np.testing.assert_allclose(np.maximum(record.quantiles[0.1], 0), forecasts[0].quantiles[0.1])
    frame = pd.DataFrame({"stamp": np.arange(40), "actual": 0.0, "unit": record.units[-1]})
    served = {level: [values[-1]] * 40 for level, values in record.quantiles.items()}
    shifts = {("shift", level): np.zeros(40) for level in record.quantiles}
    state = fit_adaptive_state(pd.DataFrame({**frame, **served, **shifts}))
    [upward] = state.shifts_at([0.1])
    assert upward > 0, "no zero is below a negative quantile"


@pytest.mark.integration
def test_a_blend_is_clipped_and_calibrated_after_its_parts_are_combined() -> None:
    pytest.importorskip("statsforecast")
    falling = 40 - np.arange(40.0) + 2 * np.sin(np.arange(40))
    panel = make_panel(*(np.maximum(falling - level, 0.0) for level in (-2, 0, 2, 4)))
    model = replace(make_model(blend=["dynamic_optimized_theta"]), calibration=None)
    blended = fit_blend(model, panel, windows=2).model
    assert blended.calibration == calibrate_model(blended, panel, windows=2).calibration
    assert blended.calibration != fit_blend(without_bounds(model), panel, windows=2).model.calibration
    blended, series = replace(blended, blend_weights={"network": 0.2, "dynamic_optimized_theta": 0.8}), panel.series[1]
    bounded, unbounded = (
        Predictor(each).forecast(series, HORIZON, levels=(0.05, 0.95)) for each in (blended, without_bounds(blended))
    )
    assert unbounded.mean.min() < 0
    np.testing.assert_array_equal(bounded.mean, unbounded.mean.clip(0))
    assert find_lowest(bounded) == 0


@pytest.mark.integration
def test_no_quantile_of_a_negative_binomial_is_negative() -> None:
    case = CASES / "06_counts_negative_quantiles"
    if not case.is_dir():
        pytest.skip(f"the input of the case is not at {case}")
    import yaml

    from forecaster.data.frames.panel import to_panel
    from forecaster.training.sequence import train_model

    panel = to_panel(pd.read_csv(case / "counts.csv", parse_dates=["ds"]))
    spec = Spec.parse(yaml.safe_load((case / "nb.yaml").read_text()), where="nb.yaml")
    model = train_model(panel, spec).model
    assert model.calibration is not None
    results = {
        name: Predictor(each).forecast_batch(panel.series, 14, levels=(0.05, 0.95))
        for name, each in {"counts": model, "without the decision": replace(model, facts={})}.items()
    }
    lowest = {
        name: min(find_lowest(item) for item in batch if isinstance(item, Forecast)) for name, batch in results.items()
    }
    assert lowest["counts"] == 0
    assert lowest["without the decision"] < 0


def test_counts_are_bounded_for_any_history() -> None:
    head: dict[str, Any] = {"head": {"kind": "neg_binomial"}, "scaling": "none"}
    result = forecast(make_model(**head), make_counts() - 1)
    assert find_lowest(result) == 0
    assert NEGATIVE_WARNING not in result.warnings
    training = {"steps": 2, "epoch_steps": 1, "batch": 4, "valid_windows": 1}
    fitted = fit(make_panel(make_counts(), make_counts(seed=1)), make_spec(**head, training=training)).model
    assert Predictor(fitted).bounds.zero == "counts"


@pytest.mark.parametrize(
    ("bounds", "sentences"),
    [
        (Bounds(), "Forecasts are not bounded."),
        (Bounds(zero="counts"), "Forecasts are not below zero, because they are counts."),
        (
            Bounds(zero="training_data"),
            "Forecasts are not below zero, because no value of the training data is. A series whose history lies outside of a "
            "bound is forecast without it.",
        ),
        (
            Bounds(lower=-2.5, upper=40.0),
            "Forecasts are not below -2.5, as specified; not above 40, as specified. A series whose history lies outside of a "
            "bound is forecast without it.",
        ),
    ],
)
def test_bounds_are_described(bounds: Bounds, sentences: str) -> None:
    assert bounds.describe() == sentences


def test_an_explanation_says_whether_the_forecast_was_clipped() -> None:
    note = "The forecast is clipped at a bound of the model; the explanation covers it before."
    assert note in explain(make_model(base="linear"), make_series(FALLING), horizon=HORIZON).notes
    assert note not in explain(make_model(base="linear"), make_series(FALLING - 9), horizon=HORIZON).notes
