"""A model of integer steps on the command line, with a real store: from the file to the forecast over HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml
from anyio.from_thread import start_blocking_portal

from forecaster.bundle import artifact
from forecaster.registry.registry import CHALLENGER, CHAMPION, Registry, create_client
from forecaster.spec import Spec
from pipelines.cli import main
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.training.train import train
from serving.deployment import releases
from serving.routes import app
from serving.settings import Settings
from tests.pipelines.conftest import make_noise_frame, make_small_spec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]  # raised by Lightning

STEPS = 60
CUTOFF = 10 * (STEPS - 1)


def integer_meters() -> pd.DataFrame:
    """Makes the noise frame with integer steps 0, 10, 20 and so on."""
    frame = make_noise_frame()
    return frame.assign(ds=10 * frame.groupby("unique_id").cumcount())


@pytest.fixture
def integer_table(tmp_path: Path) -> Path:
    path = tmp_path / "integer_steps.csv"
    integer_meters().to_csv(path, index=False)
    return path


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(make_small_spec().model_dump()))
    return path


def run_command(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_integer_data_pass_the_data_check(integer_table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("data", "check", integer_table) == 0
    output = capsys.readouterr().out
    for line in (
        "can be used\n",
        "frequency   10\n",
        "zone        none\n",
        f"span        0 to {CUTOFF}\n",
        "season 1, horizon",
    ):
        assert line in output
    assert run_command("data", "check", integer_table, "--freq", "5") == 0
    output = capsys.readouterr().out
    assert "1180 absent rows in 20 of 20 series" in output
    assert "frequency   5\n" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freq", "D"], "since the frequency is 'D'; column 'ds' has the whole number 0"),
        (["--freq", "0"], "does not step forward"),
        (["--freq", "7"], "not on that grid"),
        (["--zone", "Europe/Berlin"], "numbers have no time zone"),
    ],
)
def test_options_that_do_not_fit_integer_data_are_rejected(
    integer_table: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run_command("data", "check", integer_table, *options) == 2
    assert message in capsys.readouterr().err


def test_dates_with_an_integer_frequency_are_rejected(
    noise_data: DataSource, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("data", "check", noise_data.source, "--freq", "1") == 2
    assert "row 0 holds '2026-01-01" in capsys.readouterr().err


def test_a_python_frequency_may_be_an_integer(integer_table: Path) -> None:
    assert (
        read_panel(DataSource(str(integer_table), freq=10)).digest
        == read_panel(DataSource(str(integer_table), freq="10")).digest
    )


def test_calendar_features_are_rejected_before_a_run_is_created(fresh_root: Root, integer_table: Path) -> None:
    spec = Spec.parse(make_small_spec().model_dump() | {"calendar": ["hour"]}, where="a test")
    root = fresh_root.path
    assert run_command("train", integer_table, "--root", root, "--config", _write_config(root, spec)) == 2
    assert create_client(fresh_root.store_uri).get_experiment_by_name("small") is None


def _write_config(folder: Path, spec: Spec) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump()))
    return path


def test_the_command_line_supports_a_model_of_integer_steps(
    fresh_root: Root, integer_table: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root_option = ("--root", fresh_root.path)
    assert run_command("retrain", integer_table, "--config", config_file, "--freq", "10", *root_option) == 0, (
        capsys.readouterr().err
    )
    assert "is the champion" in capsys.readouterr().out
    version = Registry(fresh_root.store_uri).resolve("small", CHAMPION)
    assert version.run_id is not None
    run = create_client(fresh_root.store_uri).get_run(version.run_id)
    assert run.data.tags["cutoff"] == str(CUTOFF - 40)
    assert run.info.run_name.startswith("small retrain 2")

    assert run_command("verify", "small", *root_option) == 0
    forecasts_file, backtest_file = tmp_path / "forecasts.csv", tmp_path / "backtest.parquet"
    plot = tmp_path / "forecast.png"
    assert (
        run_command(
            "forecast",
            "small",
            integer_table,
            "--levels",
            0.1,
            "--levels",
            0.9,
            "--out",
            forecasts_file,
            "--plot",
            plot,
            *root_option,
        )
        == 0
    )
    forecasts = pd.read_csv(forecasts_file)
    assert forecasts.columns.tolist() == ["unique_id", "ds", "mean", "0.1", "0.9"]
    assert forecasts["ds"].tolist() == list(range(10 * STEPS, 10 * (STEPS + 4), 10)) * 20
    assert plot.read_bytes().startswith(b"\x89PNG")

    assert run_command("backtest", "small", integer_table, "--windows", 2, "--out", backtest_file, *root_option) == 0
    backtest_frame = pd.read_parquet(backtest_file)
    assert backtest_frame["ds"].tolist() == list(range(CUTOFF - 70, CUTOFF + 1, 10)) * 20
    assert (
        f"was trained on data up to {CUTOFF - 40}; origins from {CUTOFF - 80} on are not out of sample"
        in capsys.readouterr().err
    )

    assert (
        run_command("train", integer_table, "--config", config_file, "--seed", 1, "--test-windows", 0, *root_option)
        == 0
    )
    [bundle] = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("bundle")]
    manifest, card = artifact.read_manifest(Path(bundle)), (Path(bundle) / "card.md").read_text()
    assert (manifest.freq, manifest.cutoff) == ("10", str(CUTOFF))
    assert f"series up to {CUTOFF} " in card
    assert run_command("register", bundle, *root_option) == 0
    assert Registry(fresh_root.store_uri).resolve("small", CHALLENGER).number == "2"


def test_a_model_of_integer_steps_rejects_data_with_dates(
    fresh_root: Root, noise_data: DataSource, integer_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = train(DataSource(str(integer_table)), make_small_spec(), fresh_root).bundle
    assert run_command("forecast", bundle, noise_data.source) == 2
    assert "has the frequency 'h'; this model needs '10'" in capsys.readouterr().err
    assert run_command("backtest", bundle, noise_data.source) == 0, "seasonal naive is still scored"
    assert "out of sample" not in capsys.readouterr().err


def test_a_trained_model_of_integer_steps_forecasts_over_http(
    fresh_root: Root, integer_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training, folder = train(DataSource(str(integer_table)), make_small_spec(), fresh_root), tmp_path / "slot"
    with releases.staging(folder) as draft:
        artifact.save_bundle(training.model, draft / "bundle", card="# small\n")
        digest = artifact.compute_bundle_digest(draft / "bundle")
        releases.publish(folder, draft / "bundle", releases.Release(name="small", version="1", digest=digest))
    application = app.build_application(Settings(slot=folder))
    application.slot.reload_if_changed()
    y = read_panel(DataSource(str(integer_table))).series[0].y.tolist()
    series = [
        {"id": "start_and_freq", "start": 0, "freq": 10, "y": y},
        {"id": "timestamps", "ds": list(range(0, 10 * STEPS, 10)), "y": y},
    ]

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app=application.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/forecast", json={"series": series, "horizon": 4, "levels": [0.5]})

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(application.routes.router.lifespan_context(application.routes)),
    ):
        response = portal.call(post)
    assert response.status_code == 200, response.text
    assert run_command("forecast", training.bundle, integer_table) == 0
    lines = capsys.readouterr().out.splitlines()[1:5]
    cli_frame = pd.DataFrame([line.split(",") for line in lines], columns=["unique_id", "ds", "mean"])
    for forecast in response.json()["forecasts"]:
        assert forecast["ds"] == cli_frame["ds"].astype(int).tolist() == [600, 610, 620, 630]
        np.testing.assert_allclose(forecast["mean"], cli_frame["mean"].astype(float), rtol=1e-5)
