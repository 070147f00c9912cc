"""The ONNX runner: it needs no torch, rejects inconsistent inputs, and gives the forecasts of PyTorch in a Predictor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from forecaster.data.encoding import EMPTY_ENCODING
from forecaster.engines.engine import Engine, RolloutInput
from forecaster.engines.onnx.export import export_onnx
from forecaster.engines.onnx.runner import OnnxEngine
from forecaster.engines.pytorch import PyTorchEngine
from forecaster.errors import BundleDamaged, HorizonOutOfRange, InputError
from forecaster.model.regressor import Regressor, build_network
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Forecast
from tests.factories import START, make_fitted_model, make_network, make_series, make_spec, make_wave


def make_rollout_input(network: Regressor, *, rows: int = 2, steps: int = 16, future_steps: int = 5) -> RolloutInput:
    rng = np.random.default_rng(0)
    return RolloutInput(
        rng.normal(size=(rows, steps + network.pre_context)),
        rng.normal(size=(rows, steps + network.pre_context, 2)).astype(np.float32),
        np.zeros((rows, 1), dtype=np.int64),
        None,
        rng.normal(size=(rows, future_steps, 2)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def network() -> Regressor:
    spec = make_spec(decoder="direct", base="seasonal_naive", head={"kind": "gaussian"}, segment=2)
    return build_network(spec, seed=0, num_covariates=2, static_cardinalities=[3]).eval()


@pytest.fixture(scope="module")
def onnx_engine(network: Regressor) -> OnnxEngine:
    return OnnxEngine(export_onnx(network))


@pytest.mark.integration
def test_an_onnx_graph_runs_without_torch_onnx_or_pandas(network: Regressor, tmp_path: Path) -> None:
    inputs = make_rollout_input(network, future_steps=6)
    (tmp_path / "rollout.onnx").write_bytes(export_onnx(network))
    np.savez(tmp_path / "inputs.npz", **{name: array for name, array in inputs._asdict().items() if array is not None})
    code = """
import sys
import numpy as np
from forecaster.engines.engine import RolloutInput
from forecaster.engines.onnx.runner import OnnxEngine
engine = OnnxEngine(open("rollout.onnx", "rb").read())
np.save("forecast.npy", engine.roll_out(RolloutInput(**np.load("inputs.npz")), horizon=5))
print(*sorted({"torch", "onnx", "pandas", "pydantic"} & sys.modules.keys()))
"""
    root = Path(__file__).parents[4]
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == ""
    np.testing.assert_allclose(
        np.load(tmp_path / "forecast.npy"), PyTorchEngine(network).roll_out(inputs, horizon=5), atol=1e-5
    )


def test_exporting_a_network_twice_gives_identical_files(network: Regressor) -> None:
    assert export_onnx(network) == export_onnx(network)


def test_an_onnx_graph_uses_standard_operators_and_no_external_files(network: Regressor) -> None:
    model = onnx.load_from_string(export_onnx(network))
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)


def test_both_implementations_satisfy_the_engine_protocol(network: Regressor, onnx_engine: OnnxEngine) -> None:
    assert isinstance(onnx_engine, Engine)
    assert isinstance(PyTorchEngine(network), Engine)


@pytest.mark.parametrize(
    ("change", "location", "message"),
    [
        ({"values": np.zeros((2, 19))}, "values", "2 rows of 19 steps"),
        ({"values": np.zeros((2, 4))}, "values", "2 rows of 4 steps"),
        ({"values": np.zeros((0, 20))}, "values", "0 rows"),
        ({"values": np.zeros((2, 22))}, "covariates", "covariates: 2 x 22 x 2; found 2 x 20 x 2"),
        ({"covariates": None}, "covariates", "covariates: 2 x 20 x 2; found none"),
        ({"static": np.zeros((2, 2), dtype=np.int64)}, "static", "static: 2 x 1; found 2 x 2"),
        ({"future_covariates": np.zeros((2, 5, 2))}, "ahead", "ahead: 2 x 6 or more x 2; found 2 x 5 x 2"),
        ({"future_covariates": np.zeros((3, 6, 2))}, "ahead", "ahead: 2 x 6 or more x 2; found 3 x 6 x 2"),
    ],
)
def test_arrays_with_inconsistent_shapes_are_rejected(
    network: Regressor, onnx_engine: OnnxEngine, change: dict[str, np.ndarray | None], location: str, message: str
) -> None:
    inputs = make_rollout_input(network, future_steps=6)._replace(**change)
    with pytest.raises(InputError) as error:
        onnx_engine.roll_out(inputs, horizon=6)
    assert error.value.where == location
    assert message in error.value.message


def test_noise_must_cover_the_last_block(network: Regressor, onnx_engine: OnnxEngine) -> None:
    inputs = make_rollout_input(network, rows=1, future_steps=6)
    with pytest.raises(InputError, match="noise: 4 x 6 or more x 1; found 4 x 5 x 1"):
        onnx_engine.roll_out(inputs, horizon=5, noise=np.full((4, 5, 1), 0.5))
    assert onnx_engine.roll_out(inputs, horizon=5, noise=np.full((4, 6, 1), 0.5)).shape == (4, 5)


def test_noise_for_a_head_without_a_distribution_is_rejected() -> None:
    engine = OnnxEngine(export_onnx(make_network(make_spec())))
    assert not engine.can_sample
    with pytest.raises(InputError, match="noise: none; found 1 x 5 x 1"):
        engine.roll_out(RolloutInput(make_wave(16)[None]), horizon=5, noise=np.full((1, 5, 1), 0.5))


@pytest.mark.parametrize("horizon", [0, -3])
def test_a_horizon_below_one_is_rejected(network: Regressor, onnx_engine: OnnxEngine, horizon: int) -> None:
    with pytest.raises(HorizonOutOfRange, match=f"found {horizon}"):
        onnx_engine.roll_out(make_rollout_input(network), horizon=horizon)


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_content_that_is_not_onnx_is_damaged(content: bytes) -> None:
    with pytest.raises(BundleDamaged, match="onnxruntime can load") as error:
        OnnxEngine(content)
    assert error.value.where == "rollout.onnx"


def test_an_onnx_graph_of_another_format_version_is_rejected(network: Regressor) -> None:
    model = onnx.load_from_string(export_onnx(network))
    next(entry for entry in model.metadata_props if entry.key == "format").value = "2"
    with pytest.raises(BundleDamaged, match="format 1; found '2'"):
        OnnxEngine(model.SerializeToString())


def test_a_predictor_gives_the_same_forecasts_on_either_engine() -> None:
    model = make_fitted_model(make_spec(scaling="standard", base="last"))
    reference, onnx_predictor = Predictor(model), Predictor(model, engine=OnnxEngine(export_onnx(model.network)))
    with_gap = make_wave(30)
    with_gap[20:23] = np.nan
    series = [
        make_series(make_wave(40)),
        make_series(with_gap),
        make_series(make_wave(7)),
        make_series(make_wave(2)),
        make_series(1e6 * make_wave(20)),
    ]
    for first, second in zip(
        reference.forecast_batch(series, 9), onnx_predictor.forecast_batch(series, 9), strict=True
    ):
        assert type(first) is type(second)
        if isinstance(first, Forecast) and isinstance(second, Forecast):
            np.testing.assert_allclose(first.mean, second.mean, rtol=1e-5)
            assert first.ds.equals(second.ds)


@pytest.mark.parametrize("head", ["gaussian", "neg_binomial"])
def test_sample_paths_do_not_depend_on_the_engine(head: str) -> None:
    spec = make_spec(scaling="none", head={"kind": head})
    model = FittedModel(spec, "h", 4, START, EMPTY_ENCODING, make_network(spec))
    onnx_engine = OnnxEngine(export_onnx(model.network))
    assert onnx_engine.can_sample == (head == "gaussian")
    series = [make_series(np.round(5 * make_wave(16)))]
    expected, actual = (
        Predictor(model, engine=engine).sample_batch(series, 9, paths=4, seed=0)[0] for engine in (None, onnx_engine)
    )
    assert isinstance(expected, np.ndarray)
    np.testing.assert_allclose(expected, actual, rtol=1e-4)
