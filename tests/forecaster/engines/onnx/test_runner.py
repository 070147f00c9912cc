"""A graph is run without torch, takes what belongs together, and serves a Predictor as PyTorch does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from forecaster.data.encoding import PLAIN
from forecaster.engines.engine import Engine, Known
from forecaster.engines.onnx.export import export
from forecaster.engines.onnx.runner import GraphRunner
from forecaster.engines.pytorch import Reference
from forecaster.errors import BundleDamaged, HorizonOutOfRange, InputError
from forecaster.model.regressor import Regressor, build
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Forecast
from tests.factories import START, make_forecaster, make_network, make_spec, one_series, wave


def knowing(network: Regressor, *, rows: int = 2, steps: int = 16, ahead: int = 5) -> Known:
    draw = np.random.default_rng(0)
    return Known(
        draw.normal(size=(rows, steps + network.lead)),
        draw.normal(size=(rows, steps + network.lead, 2)).astype(np.float32),
        np.zeros((rows, 1), dtype=np.int64),
        None,
        draw.normal(size=(rows, ahead, 2)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def network() -> Regressor:
    spec = make_spec(decoder="direct", base="seasonal_naive", head={"kind": "gaussian"}, segment=2)
    return build(spec, seed=0, covariates=2, groups=[3]).eval()


@pytest.fixture(scope="module")
def runner(network: Regressor) -> GraphRunner:
    return GraphRunner(export(network))


def test_a_graph_is_run_without_torch_onnx_or_pandas(network: Regressor, tmp_path: Path) -> None:
    known = knowing(network, ahead=6)
    (tmp_path / "rollout.onnx").write_bytes(export(network))
    np.savez(tmp_path / "known.npz", **{name: part for name, part in known._asdict().items() if part is not None})
    code = """
import sys
import numpy as np
from forecaster.engines.engine import Known
from forecaster.engines.onnx.runner import GraphRunner
runner = GraphRunner(open("rollout.onnx", "rb").read())
np.save("told.npy", runner.roll(Known(**np.load("known.npz")), horizon=5))
print(*sorted({"torch", "onnx", "pandas", "pydantic"} & sys.modules.keys()))
"""
    root = Path(__file__).parents[4]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
    np.testing.assert_allclose(np.load(tmp_path / "told.npy"), Reference(network).roll(known, horizon=5), atol=1e-5)


def test_two_exports_of_one_network_are_one_file(network: Regressor) -> None:
    assert export(network) == export(network)


def test_a_graph_holds_standard_operators_only_and_no_file_beside_it(network: Regressor) -> None:
    model = onnx.load_from_string(export(network))
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 18)]
    assert not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)


def test_both_engines_are_engines(network: Regressor, runner: GraphRunner) -> None:
    assert isinstance(runner, Engine)
    assert isinstance(Reference(network), Engine)


@pytest.mark.parametrize(
    ("change", "where", "found"),
    [
        ({"values": np.zeros((2, 19))}, "values", "2 rows of 19 steps"),
        ({"values": np.zeros((2, 4))}, "values", "2 rows of 4 steps"),
        ({"values": np.zeros((0, 20))}, "values", "0 rows"),
        ({"values": np.zeros((2, 22))}, "covariates", "covariates: 2 x 22 x 2; found 2 x 20 x 2"),
        ({"covariates": None}, "covariates", "covariates: 2 x 20 x 2; found none"),
        ({"static": np.zeros((2, 2), dtype=np.int64)}, "static", "static: 2 x 1; found 2 x 2"),
        ({"ahead": np.zeros((2, 5, 2))}, "ahead", "ahead: 2 x 6 or more x 2; found 2 x 5 x 2"),
        ({"ahead": np.zeros((3, 6, 2))}, "ahead", "ahead: 2 x 6 or more x 2; found 3 x 6 x 2"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    network: Regressor, runner: GraphRunner, change: dict[str, np.ndarray | None], where: str, found: str
) -> None:
    known = knowing(network, ahead=6)._replace(**change)
    with pytest.raises(InputError) as error:
        runner.roll(known, horizon=6)
    assert error.value.where == where
    assert found in error.value.message


def test_noise_must_reach_to_the_end_of_the_last_block(network: Regressor, runner: GraphRunner) -> None:
    known = knowing(network, rows=1, ahead=6)
    with pytest.raises(InputError, match="noise: 4 x 6 or more x 1; found 4 x 5 x 1"):
        runner.roll(known, horizon=5, noise=np.full((4, 5, 1), 0.5))
    assert runner.roll(known, horizon=5, noise=np.full((4, 6, 1), 0.5)).shape == (4, 5)


def test_noise_for_a_head_without_distribution_is_refused() -> None:
    runner = GraphRunner(export(make_network(make_spec())))
    assert not runner.draws
    with pytest.raises(InputError, match="noise: none; found 1 x 5 x 1"):
        runner.roll(Known(wave(16)[None]), horizon=5, noise=np.full((1, 5, 1), 0.5))


@pytest.mark.parametrize("horizon", [0, -3])
def test_a_horizon_below_one_is_refused(network: Regressor, runner: GraphRunner, horizon: int) -> None:
    with pytest.raises(HorizonOutOfRange, match=f"found {horizon}"):
        runner.roll(knowing(network), horizon=horizon)


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_what_is_no_graph_is_damaged(content: bytes) -> None:
    with pytest.raises(BundleDamaged, match="onnxruntime can load") as error:
        GraphRunner(content)
    assert error.value.where == "rollout.onnx"


def test_a_graph_of_another_format_is_refused(network: Regressor) -> None:
    model = onnx.load_from_string(export(network))
    next(fact for fact in model.metadata_props if fact.key == "format").value = "2"
    with pytest.raises(BundleDamaged, match="format 1; found '2'"):
        GraphRunner(model.SerializeToString())


def test_a_predictor_answers_the_same_on_either_engine() -> None:
    forecaster = make_forecaster(make_spec(scaling="standard", base="last"))
    one, other = Predictor(forecaster), Predictor(forecaster, engine=GraphRunner(export(forecaster.network)))
    gappy = wave(30)
    gappy[20:23] = np.nan
    asked = [
        one_series(wave(40)),
        one_series(gappy),
        one_series(wave(7)),
        one_series(wave(2)),
        one_series(1e6 * wave(20)),
    ]
    for first, second in zip(one.forecast_each(asked, 9), other.forecast_each(asked, 9), strict=True):
        assert type(first) is type(second)
        if isinstance(first, Forecast) and isinstance(second, Forecast):
            np.testing.assert_allclose(first.mean, second.mean, rtol=1e-5)
            assert first.ds.equals(second.ds)


@pytest.mark.parametrize("head", ["gaussian", "neg_binomial"])
def test_paths_do_not_depend_on_the_engine(head: str) -> None:
    spec = make_spec(scaling="none", head={"kind": head})
    forecaster = Forecaster(spec, "h", 4, START, PLAIN, make_network(spec))
    runner = GraphRunner(export(forecaster.network))
    assert runner.draws == (head == "gaussian")
    asked = [one_series(np.round(5 * wave(16)))]
    one, other = (
        Predictor(forecaster, engine=engine).sample_each(asked, 9, paths=4, seed=0)[0] for engine in (None, runner)
    )
    assert isinstance(one, np.ndarray)
    np.testing.assert_allclose(one, other, rtol=1e-4)
