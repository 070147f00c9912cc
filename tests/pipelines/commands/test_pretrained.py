"""Commands with the pretrained network: without a model, and under the name `base`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster import Forecaster
from forecaster.bundle import artifact
from forecaster.bundle.pretrained.base import BASE_FOLDER
from forecaster.errors import InputError
from pipelines.commands.model_options import resolve_bundle
from pipelines.commands.options import RootOptions
from tests.factories import make_fitted_model, make_spec
from tests.pipelines.commands.test_channels import run_command
from tests.pipelines.conftest import make_noise_frame

pytestmark = pytest.mark.integration


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three daily series with a column of text, in a working folder without a registry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ds = pd.date_range("2024-01-01", periods=40, freq="D")
    rows = [
        pd.DataFrame({"unique_id": name, "ds": ds, "y": 10.0 * index + np.arange(40) % 7, "region": "north"})
        for index, name in enumerate("abc")
    ]
    path = tmp_path / "sales.csv"
    pd.concat(rows).to_csv(path, index=False)
    return path


def test_data_alone_are_forecast_by_the_pretrained_network(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("forecast", table, "--horizon", 5, "--out", "forecast.csv") == 0
    expected = Forecaster.pretrained().predict(pd.read_csv(table, usecols=["unique_id", "ds", "y"]), horizon=5)
    result = pd.read_csv("forecast.csv")
    np.testing.assert_allclose(result["mean"], expected["forecaster"])
    errors = capsys.readouterr().err
    assert errors.count("pretrained network 'base'") == 1
    assert "frequency D, season 7" in errors
    assert "forecaster train DATA --horizon 5" in errors
    assert errors.count("The column region of 3 series was ignored") == 1


def test_frequency_season_and_horizon_have_options(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("forecast", table, "--freq", "D", "--season", 14) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1 + 3 * 14  # the usual horizon of days
    assert "season 14" in output.err


def test_levels_give_quantiles(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("forecast", table, "--horizon", 5, "--levels", 0.1, "--levels", 0.9, "--out", "x.csv") == 0
    result = pd.read_csv("x.csv")
    assert (result.iloc[:, 3] <= result.iloc[:, 4]).all()


def test_bands_of_whole_paths_need_a_calibrated_model(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("forecast", table, "--horizon", 5, "--levels", 0.9, "--joint", "--out", "x.csv") == 2
    assert "Expected a calibrated model, for bands of whole paths" in capsys.readouterr().err
    assert not Path("x.csv").exists()


@pytest.mark.parametrize("command", ["forecast", "backtest", "inspect"])
def test_the_name_base_is_the_pretrained_network(command: str, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command, "base", table, "--horizon", 5) == 0
    output = capsys.readouterr()
    assert "The column region of 3 series was ignored" in output.err
    assert ("bounds        Forecasts are not below zero, if no" in output.out) == (command == "inspect")
    assert {"forecast": "a,2024-02-10", "backtest": "seasonal_naive", "inspect": "half-life"}[command] in output.out


def test_a_model_is_compared_with_the_pretrained_network(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_noise_frame(steps=60).to_csv("noise.csv", index=False)
    artifact.save_bundle(make_fitted_model(make_spec(horizon=5, name="small"), seed=1), Path("small"), card="# small\n")
    assert run_command("backtest", "small", "noise.csv", "--rival", "base", "--out", "both.csv") == 0
    both = pd.read_csv("both.csv")
    assert np.isfinite(both[["small", "base"]]).all(axis=None)
    assert "not out of sample" not in [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("forecaster: base")
    ]


def test_a_bundle_or_a_registered_model_named_base_comes_first(table: Path) -> None:
    options = RootOptions(root=Path("state"))
    assert resolve_bundle("base", options) == BASE_FOLDER
    Path("base").mkdir()
    assert resolve_bundle("base", options) == BASE_FOLDER  # a folder that is no bundle
    Path("base").rmdir()
    bundle = Path("elsewhere")
    artifact.save_bundle(make_fitted_model(make_spec(name="base"), seed=1), bundle, card="# base\n")
    assert run_command("register", bundle, "--root", "state") == 0
    assert run_command("promote", "base", "--force", "--root", "state") == 0
    registered = resolve_bundle("base", options)
    assert registered != BASE_FOLDER
    assert artifact.compute_bundle_digest(registered) == artifact.compute_bundle_digest(bundle)
    bundle.rename("base")
    assert resolve_bundle("base", options) == Path("base")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Expected DATA for the pretrained network"),
        (("hospital-2",), "no data of that name"),
        (("hospital@champion",), "no data of that name"),
        (("missing.csv",), "Expected a file at missing.csv"),
        (("missing", "sales.csv"), "Expected a registry"),
        (("sales.csv", "--season", 0), "Expected a --season of 1"),
        (("sales.csv", "--season", 10**6), "Expected a --season of 1"),
        (("sales.csv", "--freq", "fortnight"), "'fortnight' is not known"),
        (("sales.csv", "--horizon", 0), "Expected --horizon"),
        (("small", "sales.csv", "--season", 7), "Expected --season with the pretrained network"),
        (("small",), "found only 'small', a bundle"),
    ],
)
def test_the_pretrained_network_never_replaces_a_missing_model_silently(
    arguments: tuple[object, ...], message: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact.save_bundle(make_fitted_model(make_spec(name="small"), seed=1), Path("small"), card="# small\n")
    assert run_command("forecast", *arguments) in (1, 2)
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def write_table(path: str, **columns: object) -> None:
    pd.DataFrame(columns).to_csv(path, index=False)


@pytest.mark.parametrize("horizon", [1, 500])
def test_short_and_strange_histories_are_forecast(
    horizon: int, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    days = pd.date_range("2024-01-05", periods=4, freq="D").astype(
        str
    )  # from a Friday, so that these are not working days
    for values in ([1, 2, 3, 4], [5, 5, 5, 5], [-1, None, None, -3], [1e90, -1e90, 1e90, 0], [0, 0, 0, 1e-90]):
        write_table("odd.csv", ds=days, y=values)
        assert run_command("forecast", "odd.csv", "--horizon", horizon, "--out", "out.csv") == 0, (
            capsys.readouterr().err
        )
        assert np.isfinite(pd.read_csv("out.csv")["mean"]).all()
    write_table("two.csv", ds=[1, 2], y=[3, 4])
    assert run_command("forecast", "two.csv", "--horizon", horizon, "--out", "out.csv") == 0
    assert len(pd.read_csv("out.csv")) == horizon


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ds": ["2024-01-01"], "y": [1]}, "frequency cannot be inferred"),
        ({"ds": ["2024-01-01", "2024-01-02"], "y": ["high", "low"]}, "number"),
        ({"ds": ["2024-01-01", "2024-01-02"], "y": [1e200, 2]}, "up to 1e+100"),
        ({"ds": ["2024-01-05", "2024-01-06"], "y": [None, None]}, "observed value"),
        ({"ds": ["yesterday", "today"], "y": [1, 2]}, "timestamp"),
        ({"date": ["2024-01-01", "2024-01-02"], "y": [1, 2]}, "--ds-column"),
        ({"ds": ["2024-01-01", "2024-01-01"], "y": [1, 2]}, "several series"),
        ({"ds": ["2024-01-01", "2024-01-02", "2024-03-07", "2024-03-09"], "y": [1, 2, 3, 4]}, "regular|apart"),
    ],
)
def test_data_that_cannot_be_read_are_refused_in_words(
    columns: dict[str, list[object]], message: str, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table("bad.csv", **columns)
    assert run_command("forecast", "bad.csv", "--horizon", 3) == 2
    errors = capsys.readouterr().err
    assert any(part in errors for part in message.split("|")), errors
    assert "Traceback" not in errors


def test_an_invalid_season_is_named_by_its_option() -> None:
    from pipelines.commands.model_options import SeasonOptions

    with pytest.raises(InputError, match="season"):
        SeasonOptions(season=-3).validate([BASE_FOLDER])
