"""The commands `forecaster batch` and `score`, and `Forecaster.predict_dataset`, which does the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster import Forecaster
from forecaster.api.messages import ForecastWarning
from forecaster.batch import read_archive
from forecaster.batch.manifest import CATALOGUE_FILE
from forecaster.bundle import artifact
from forecaster.errors import (
    BundleError,
    FrequencyUnknown,
    InputError,
    LevelOutOfRange,
    ManifestMismatch,
    TooManyRejects,
)
from pipelines.commands.batch import DatasetOptions, WorkOptions, batch
from pipelines.commands.options import RootOptions
from pipelines.commands.schedule import ScheduleOptions
from pipelines.commands.score import ScoreOutputs, score
from pipelines.scheduling.jobs import JobStore
from tests.factories import make_fitted_model, make_spec
from tests.forecaster.batch.test_covariates import FUTURE, HISTORIES, STATIC
from tests.forecaster.prediction.test_covariates import make_model
from tests.system.processes import CHECKOUT, make_environment

NIGHT = "2026-01-11"


def make_frame(*, series: int = 4, steps: int = 240) -> pd.DataFrame:
    """Returns daily series with a week, the last of which is too short."""
    rng, days = np.random.default_rng(0), pd.date_range("2025-05-17", periods=steps, freq="D")
    frames = [
        pd.DataFrame(
            {"unique_id": f"s{number}", "ds": days, "y": 20 + number + days.day_of_week + rng.normal(size=steps)}
        )
        for number in range(series)
    ]
    return pd.concat([*frames[:-1], frames[-1].iloc[:1]], ignore_index=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.parquet"
    make_frame().to_parquet(path, index=False)
    return path


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    model = replace(make_fitted_model(make_spec()), freq="D")
    artifact.save_bundle(model, tmp_path / "small-bundle", card="# small")
    return tmp_path / "small-bundle"


def run_night(data: Path, out: Path, **options: object) -> None:
    work = WorkOptions(workers=1)
    batch(
        "base",
        str(data),
        out=str(out),
        as_of=NIGHT,
        horizon=7,
        dataset_options=DatasetOptions(freq="D"),
        work_options=work,
        **options,
    )


def test_a_night_is_written_scored_and_the_same_as_predict(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_night(data, tmp_path / "archive", level=(80.0,), max_rejects=1.0)
    printed = capsys.readouterr().out
    assert "series    4, of which 1 have no forecast" in printed
    assert "shards    1 of 1 finished, 1 by this run" in printed
    forecasts = read_archive(str(tmp_path / "archive"), as_of=NIGHT).to_pandas()
    with pytest.warns(ForecastWarning, match="no forecast"):
        direct = Forecaster.pretrained(freq="D").predict(make_frame(), horizon=7, level=80)
    columns = ["unique_id", "ds", "forecaster", "forecaster-lo-80", "forecaster-hi-80"]
    pd.testing.assert_frame_equal(forecasts[columns], direct[columns], check_dtype=False)

    actuals = forecasts[forecasts["step"] <= 3][["unique_id", "ds"]].assign(y=25.0)
    actuals.to_csv(tmp_path / "actuals.csv", index=False)
    outputs = ScoreOutputs(out=tmp_path / "scores.csv", json=tmp_path / "scores.json")
    score(str(tmp_path / "archive"), str(tmp_path / "actuals.csv"), by=("step,version",), outputs=outputs)
    printed = capsys.readouterr().out
    assert "9 of 21 rows have an actual (42.9 %); the others are not scored yet" in printed
    table = pd.read_csv(tmp_path / "scores.csv")
    assert list(table["step"]) == list(range(1, 8))
    assert table["mae"][0] == pytest.approx((forecasts[forecasts["step"] == 1]["forecaster"] - 25).abs().mean())
    assert table["mae"].isna().tolist() == [False] * 3 + [True] * 4
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["mase"] > 0


def test_too_many_rejects_end_the_command_with_3_after_the_forecasts_are_written(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TooManyRejects) as raised:
        run_night(data, tmp_path / "archive")
    assert raised.value.exit_code == 3
    assert read_archive(str(tmp_path / "archive")).num_rows == 21


def test_unusable_options_are_refused_before_any_work(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "archive"
    for options, error, message in (
        ({"dataset_options": DatasetOptions()}, FrequencyUnknown, "frequency of the data for the pretrained network"),
        ({"level": (0.8,)}, LevelOutOfRange, "in percent"),
        ({"max_rejects": -1.0}, InputError, "--max-rejects"),
        ({"work_options": WorkOptions(shard="4/4")}, InputError, r"--shard I/N"),
        ({"work_options": WorkOptions(workers=0)}, InputError, "--workers of at least 1"),
    ):
        defaults = {"as_of": NIGHT, "dataset_options": DatasetOptions(freq="D"), "work_options": WorkOptions(workers=1)}
        with pytest.raises(error, match=message):
            batch("base", str(data), out=str(out), **defaults | options)
    with pytest.raises(InputError, match="without a password"):
        batch("base", "s3://key:secret@bucket/data", out=str(out))
    assert not out.exists()


def test_both_commands_can_be_scheduled(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, cron = RootOptions(root=tmp_path / "root"), ScheduleOptions(cron="0 3 * * *")
    batch("hospital", str(data), out="archive", level=(80.0,), schedule_options=cron, root_options=root)
    score("archive", str(data), by=("version",), schedule_options=cron, root_options=root)
    jobs = {job.name: job.words for job in JobStore(root.open_root().schedule).load_jobs()}
    assert jobs == {
        "batch-hospital": (
            "batch",
            "--model=hospital",
            f"--source={data}",
            "--out=archive",
            "--level=80.0",
            "--max-rejects=0.01",
        ),
        "score-archive": ("score", "--archive=archive", f"--actuals={data}", "--by=version", "--y-column=y"),
    }


@pytest.mark.integration
def test_workers_and_a_program_without_torch_write_the_bytes_of_one_process(data: Path, tmp_path: Path) -> None:
    run_night(data, tmp_path / "one", max_rejects=1.0, quantiles=(0.5,))
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'matplotlib', 'mlflow'))\n"  # an import fails, also in the workers
        "from pipelines.cli import main\n"
        "if __name__ == '__main__':\n    main(sys.argv[1:])\n"
    )
    (tmp_path / "program.py").write_text(program)
    rows = make_frame(series=9)
    rows.iloc[np.random.default_rng(0).permutation(len(rows))].to_parquet(tmp_path / "rows.parquet", index=False)
    digests = []
    for workers in (1, 2):
        out = tmp_path / f"workers-{workers}"
        command = ["batch", "base", str(tmp_path / "rows.parquet"), "--out", str(out), "--as-of", NIGHT, "--freq", "D"]
        options = ["--shard-rows", "500", "--workers", str(workers), "--horizon", "7", "--max-rejects", "1"]
        completed = subprocess.run(
            [sys.executable, str(tmp_path / "program.py"), *command, *options],
            env=make_environment(PYTHONPATH=str(CHECKOUT)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert completed.returncode == 0, completed.stderr
        digests.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.parquet")})
    assert digests[0] == digests[1]
    assert len(digests[0]) > 3


def test_covariates_may_be_files_or_tables_of_their_own(tmp_path: Path) -> None:
    HISTORIES.to_pandas().to_parquet(tmp_path / "history.parquet", index=False)
    FUTURE.to_pandas().to_csv(tmp_path / "future.csv", index=False)
    STATIC.to_pandas().to_csv(tmp_path / "static.csv", index=False)
    artifact.save_bundle(make_model("rollout", calendar=()), tmp_path / "bundle", card="# covariates")
    places = DatasetOptions(future=str(tmp_path / "future.csv"), static=str(tmp_path / "static.csv"))
    options = {"as_of": NIGHT, "horizon": 5, "work_options": WorkOptions(workers=1)}
    source, out = str(tmp_path / "history.parquet"), str(tmp_path / "archive")
    batch(str(tmp_path / "bundle"), source, out=out, dataset_options=places, **options)
    model = Forecaster.load(tmp_path / "bundle")
    tables = {"future": FUTURE.to_pandas(), "static": STATIC}
    report = model.predict_dataset(source, tmp_path / "other", 5, as_of=NIGHT, progress=False, **tables)
    assert (report.series, report.rejected) == (12, 0)
    columns = ["unique_id", "ds", "forecaster"]
    assert read_archive(str(tmp_path / "other"), columns=columns).equals(read_archive(out, columns=columns))
    assert model.predict_dataset(source, tmp_path / "other", 5, as_of=NIGHT, progress=False, **tables).computed == 0
    tables["future"].loc[0, "heat"] += 1
    with pytest.raises(ManifestMismatch, match="future of covariates"):
        model.predict_dataset(source, tmp_path / "other", 5, as_of=NIGHT, progress=False, **tables)


def test_predict_dataset_of_a_loaded_and_of_a_pretrained_forecaster(
    data: Path, tmp_path: Path, small_model: Path
) -> None:
    pretrained = Forecaster.pretrained(freq="D", horizon=7)
    report = pretrained.predict_dataset(data, tmp_path / "archive", as_of=NIGHT, level=80, progress=False)
    assert (report.series, report.rejected, report.is_complete) == (4, 1, True)
    assert pretrained.predict_dataset(data, tmp_path / "archive", as_of=NIGHT, level=80, progress=False).computed == 0
    loaded = Forecaster.load(small_model)
    assert loaded.predict_dataset(data, tmp_path / "small", limit=2, progress=False).series == 2
    assert (tmp_path / "small" / CATALOGUE_FILE).is_file()
    small_model.rename(tmp_path / "moved")
    with pytest.raises(BundleError, match="found none"):
        loaded.predict_dataset(data, tmp_path / "moved-archive", progress=False)
