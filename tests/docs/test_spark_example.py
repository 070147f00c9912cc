"""The example for Spark in docs/batch.md, on a local Spark: its forecasts are those of one call of the library."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from forecaster.batch import forecast_table
from forecaster.bundle.artifact import load_predictor, save_bundle
from tests.factories import make_fitted_model, make_spec
from tests.forecaster.batch.conftest import make_rows, shuffle_rows, write_files
from tests.optional_packages import import_optional
from tests.system.processes import CHECKOUT

pytestmark = pytest.mark.nightly


@pytest.mark.filterwarnings("ignore")  # of Spark
def test_the_example_forecasts_every_series_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = import_optional("pyspark.sql", also="a JVM")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHECKOUT), *sys.path]))
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    save_bundle(replace(make_fitted_model(make_spec()), freq="h"), tmp_path / "demand", card="# small")
    rows = make_rows(40)
    write_files(tmp_path / "history", {"a.parquet": shuffle_rows(rows)})
    page = (CHECKOUT / "docs/batch.md").read_text()
    [program] = re.findall(r"(?s)### Spark\n.*?```python\n(.*?)```", page)
    for shown, used in (
        ("/models/demand", str(tmp_path / "demand")),
        ("s3a://lake/history", str(tmp_path / "history")),
        ("s3a://lake/forecasts", str(tmp_path / "forecasts")),
        ("horizon=28, level=80", "horizon=5"),  # the small model has no intervals
        (", `forecaster-lo-80` double, `forecaster-hi-80` double", ""),
        ("repartition(1000,", "repartition(3,"),
    ):
        assert shown in program
        program = program.replace(shown, used)
    options = {"spark.ui.enabled": "false", "spark.sql.session.timeZone": "UTC"}
    session = sql.SparkSession.builder.master("local[1]").config(map=options).getOrCreate()
    try:
        exec(program, {"__name__": "__main__"})  # as a program: Spark sends its function by value
    finally:
        session.stop()
    expected = forecast_table(load_predictor(tmp_path / "demand"), rows, horizon=5).forecasts.to_pandas()
    found = pq.read_table(tmp_path / "forecasts").to_pandas()
    pd.testing.assert_frame_equal(_sort(found), _sort(expected), check_dtype=False, check_exact=True)


def _sort(frame: pd.DataFrame) -> Any:
    ds = frame["ds"].dt.tz_localize(None).astype("datetime64[us]")
    return frame.assign(ds=ds).sort_values(["unique_id", "ds"], ignore_index=True)
