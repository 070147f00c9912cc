"""Monitoring of a champion, on data that do not change and on data that do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forecaster.bundle import artifact
from forecaster.errors import LedgerError, NoSuchModel
from forecaster.ledger.recording import SeriesNaming, build_records
from forecaster.ledger.records import ModelIdentity, ObservedSeries, encode_timestamps, series_key
from forecaster.ledger.store import Ledger
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import CHAMPION, Registry
from forecaster.series import Series
from pipelines import cli
from pipelines.monitoring.monitor import build_monitoring_report, find_retrain_reasons, resolve_ledger_url
from pipelines.monitoring.report import render_report_html, render_report_json, render_report_prometheus
from pipelines.promotion.promote import promote_version, register_bundle
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import train
from tests.pipelines.conftest import make_noise_frame, make_small_spec

pytestmark = pytest.mark.integration

SERIES_COUNT, HOUR_COUNT, HORIZON = 16, 48, 4


@pytest.fixture(scope="module")
def trained_root(migrated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root with a champion that forecasts the mean of the history, of white noise around ten."""
    folder = tmp_path_factory.mktemp("monitor")
    root = Root(folder / "root")
    root.path.mkdir()
    shutil.copy(migrated_root / "mlflow.db", root.path)
    make_noise_frame(SERIES_COUNT, 60).to_csv(folder / "meters.csv", index=False)
    training = train(DataSource(str(folder / "meters.csv")), make_small_spec(valid_windows=4), root)
    register_bundle(training.bundle, root)
    Registry(root.store_uri).set_alias(Registry(root.store_uri).get_version("small", "1"), "challenger")
    promote_version("small", root, version_number=None, force=True)
    return root


def serve_and_observe(
    root: Root,
    file: Path,
    *,
    seed: int = 0,
    shift: float = 0.0,
    spread: float = 1.0,
    unit: float = 1.0,
    group: bool = False,
    hours: int = HOUR_COUNT,
    changed: slice = slice(HOUR_COUNT // 2, None),
) -> str:
    """Records a forecast per hour and the actuals in a ledger; returns its address.

    In the changed hours the level is `shift` standard deviations higher, and the noise is multiplied by `spread`.
    """
    draw = np.random.default_rng(seed)
    y = 10 + draw.normal(size=(SERIES_COUNT, 60 + hours + HORIZON))
    y[:, 60:][:, changed] = 10 + (y[:, 60:][:, changed] - 10) * spread + shift
    y *= unit
    start = pd.Timestamp("2026-01-10")
    champion = Registry(root.store_uri).resolve("small", CHAMPION)
    predictor = Predictor(artifact.load_bundle(next(iter(root.bundles.iterdir()))))
    address = f"sqlite:///{file}"
    ledger = Ledger(address)
    model, naming = ModelIdentity("small", champion.number, champion.digest), SeriesNaming(ledger.salt, keep_ids=False)
    records = []
    for hour in range(60, 60 + hours):
        histories = [Series(f"meter_{index}", start, "h", values[:hour]) for index, values in enumerate(y)]
        outcomes = predictor.forecast_batch(histories, HORIZON)
        records += build_records(
            predictor,
            model,
            histories,
            outcomes,
            naming=naming,
            adaptive_state=None,
            made_at=[1e9 + hour] * SERIES_COUNT,
        )  # type: ignore[arg-type]
    if group:
        records = [record._replace(group="odd" if index % 2 else "even") for index, record in enumerate(records)]
    ledger.record(records)
    timestamps = encode_timestamps(pd.date_range(start, periods=y.shape[1], freq="h"))
    ledger.observe(
        [
            ObservedSeries(series_key(ledger.salt, f"meter_{index}", start), timestamps, values.tolist())
            for index, values in enumerate(y)
        ],
        now=2e9,
    )
    ledger.close()
    return address


@pytest.fixture(scope="module")
def unchanged_ledger(trained_root: Root, tmp_path_factory: pytest.TempPathFactory) -> str:
    return serve_and_observe(trained_root, tmp_path_factory.mktemp("same") / "ledger.db", group=True)


@pytest.fixture(scope="module")
def shifted_ledger(trained_root: Root, tmp_path_factory: pytest.TempPathFactory) -> str:
    return serve_and_observe(trained_root, tmp_path_factory.mktemp("moved") / "ledger.db", shift=2.0)


def test_unchanged_data_trigger_nothing(trained_root: Root, unchanged_ledger: str) -> None:
    report = build_monitoring_report(trained_root, "small", url=unchanged_ledger)
    assert report.reasons == []
    assert find_retrain_reasons(trained_root, "small", url=unchanged_ledger) == []
    assert (report.span.forecasts, report.accuracy.scored) == (SERIES_COUNT * HOUR_COUNT, SERIES_COUNT * HOUR_COUNT)
    assert set(report.charts) == {"all series", "even", "odd"}
    assert [finding.name for finding in report.findings if finding.calls is None] == []
    assert set(report.accuracy.by_group) == {"even", "odd"}
    assert report.accuracy.overall.coverage[0.8] == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize("seed", [1, 2])
def test_other_draws_of_the_same_process_trigger_nothing(trained_root: Root, tmp_path: Path, seed: int) -> None:
    assert (
        find_retrain_reasons(
            trained_root, "small", url=serve_and_observe(trained_root, tmp_path / "ledger.db", seed=seed)
        )
        == []
    )


def test_a_level_shift_is_detected(trained_root: Root, shifted_ledger: str) -> None:
    report = build_monitoring_report(trained_root, "small", url=shifted_ledger)
    change = next(finding for finding in report.findings if finding.name == "change")
    assert change.calls
    chart = report.charts["all series"].chart
    assert chart.direction == "above"
    assert chart.alarm is not None
    assert HOUR_COUNT // 2 <= chart.alarm <= HOUR_COUNT // 2 + 3
    assert find_retrain_reasons(trained_root, "small", url=shifted_ledger) == report.reasons != []


def test_increased_noise_is_detected(trained_root: Root, tmp_path: Path) -> None:
    reasons = find_retrain_reasons(
        trained_root, "small", url=serve_and_observe(trained_root, tmp_path / "ledger.db", spread=4.0)
    )
    assert any("intervals" in reason for reason in reasons)
    assert any("MASE" in reason for reason in reasons)


def test_a_change_is_detected_after_calm_months_and_not_reported_forever(trained_root: Root, tmp_path: Path) -> None:
    def calls_for_action(file: str, changed: slice) -> bool | None:
        report = build_monitoring_report(
            trained_root,
            "small",
            url=serve_and_observe(trained_root, tmp_path / file, spread=2.5, hours=300, changed=changed),
        )
        return next(finding.calls for finding in report.findings if finding.name == "error")

    assert calls_for_action("late.db", slice(276, None)), "the latest 24 of 300 hours"
    assert calls_for_action("early.db", slice(0, 24)) is False, "the first 24 of 300 hours"


def test_a_change_of_units_is_detected_in_the_inputs(trained_root: Root, tmp_path: Path) -> None:
    reasons = find_retrain_reasons(
        trained_root, "small", url=serve_and_observe(trained_root, tmp_path / "ledger.db", unit=1000.0)
    )
    assert (
        [reason for reason in reasons if reason.startswith(("the input feature 'level'", "the input feature 'change'"))]
        == reasons
        != []
    )


def test_only_forecasts_since_the_given_time_count(trained_root: Root, unchanged_ledger: str) -> None:
    report = build_monitoring_report(
        trained_root, "small", url=unchanged_ledger, since=datetime.fromtimestamp(1e9 + 60 + HOUR_COUNT - 2, UTC)
    )
    assert report.span.forecasts == 2 * SERIES_COUNT
    assert report.findings[-1].name.startswith("input")


def test_too_little_data_gives_no_finding(trained_root: Root, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(address).close()
    report = build_monitoring_report(trained_root, "small", url=address)
    assert report.reasons == []
    assert {finding.calls for finding in report.findings} == {None}
    for text in (render_report_html(report), render_report_json(report), render_report_prometheus(report)):
        assert "nan" not in text.lower().replace("finance", "")


def test_a_bundle_without_an_input_profile_says_so(
    trained_root: Root, unchanged_ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_manifest = artifact.read_manifest

    def read_manifest_without_inputs(folder: Path) -> artifact.Manifest:
        manifest = read_manifest(folder)
        return manifest.model_copy(
            update={"facts": {name: fact for name, fact in manifest.facts.items() if name != "inputs"}}
        )

    monkeypatch.setattr(artifact, "read_manifest", read_manifest_without_inputs)
    report = build_monitoring_report(trained_root, "small", url=unchanged_ledger)
    assert [finding.reason for finding in report.findings if finding.name == "inputs"] == [
        "the bundle has no profile of its training data. Train the model again"
    ]
    assert report.reasons == []


def test_without_a_ledger_monitoring_is_not_required_and_the_command_says_so(trained_root: Root) -> None:
    assert find_retrain_reasons(trained_root, "small") == []
    assert (
        resolve_ledger_url(trained_root, "on")
        == resolve_ledger_url(trained_root, None)
        == f"sqlite:///{trained_root.slot}/ledger.db"
    )
    with pytest.raises(LedgerError, match="FORECASTER_SERVING_LEDGER=on"):
        build_monitoring_report(trained_root, "small")
    with pytest.raises(NoSuchModel):
        build_monitoring_report(trained_root, "other")


def test_retrain_if_needed_reads_the_monitoring_findings(
    trained_root: Root, shifted_ledger: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "retrain",
        str(trained_root.path.parent / "meters.csv"),
        "--if-needed",
        "--root",
        str(trained_root.path),
    ]
    config = trained_root.path.parent / "small.yaml"
    config.write_text(json.dumps(make_small_spec(valid_windows=4).model_dump(mode="json")))
    monkeypatch.setenv("FORECASTER_SERVING_LEDGER", "postgresql+psycopg://me:fck_secret@127.0.0.1:9/none")
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--config", str(config)])
    assert not ended.value.code
    output = capsys.readouterr()
    assert output.out.startswith("nothing to do")
    assert "the ledger was not checked" in output.err
    assert "fck_secret" not in output.err
    monkeypatch.setenv("FORECASTER_SERVING_LEDGER", shifted_ledger)
    monkeypatch.setattr("pipelines.retraining.retrain.retrain", _raise_retraining_started)
    with pytest.raises(_RetrainingStarted):
        cli.main([*arguments, "--config", str(config)])
    assert capsys.readouterr().out.startswith("needed  the CUSUM of one-step errors")


class _RetrainingStarted(Exception):
    """Raised where a retraining would start."""


def _raise_retraining_started(*_: object, **__: object) -> None:
    raise _RetrainingStarted


def run_failing_command(root: Root, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["monitor", *arguments, "--root", str(root.path)])
    code = ended.value.code
    return code if isinstance(code, int) else 0


def test_the_exit_code_of_the_command_reflects_the_findings(
    trained_root: Root,
    unchanged_ledger: str,
    shifted_ledger: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FORECASTER_SERVING_LEDGER", raising=False)
    files = [tmp_path / name for name in ("page.html", "report.json", "live.prom")]
    flags = [
        part
        for flag, path in zip(("--html", "--json", "--prometheus"), files, strict=True)
        for part in (flag, str(path))
    ]
    assert run_failing_command(trained_root, "small", "--url", shifted_ledger, *flags) == 3
    output = capsys.readouterr()
    assert "action is needed; the CUSUM of one-step errors of all series" in output.err
    page, report, metrics = (path.read_text() for path in files)
    assert "Action is needed" in page
    assert page.count("data:image/png;base64,") == 2
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert json.loads(report)["reasons"] == [output.err.strip().removeprefix("forecaster: action is needed; ")]
    assert 'forecaster_live_action{model="small",version="1"} 1.0' in metrics
    assert 'forecaster_live_step_mae{model="small",version="1",step="4"}' in metrics
    for line in metrics.splitlines():
        assert line.startswith("# ") or re.fullmatch(r'forecaster_live_\w+\{(\w+="[^"]*",?)+\} -?[0-9.e+-]+', line), (
            line
        )
    assert exit_code_of(trained_root, "small", "--url", unchanged_ledger) == 0
    assert run_failing_command(trained_root, "other", "--url", unchanged_ledger) == 1
    assert run_failing_command(trained_root, "small") == 1
    assert run_failing_command(trained_root, "small", "--url", "nonsense://me:fck_secret@host") == 2
    assert "fck_secret" not in "".join(capsys.readouterr())


def exit_code_of(root: Root, *arguments: str) -> int:
    """Runs the command and returns its exit code; 0 if it ends without one."""
    try:
        cli.main(["monitor", *arguments, "--root", str(root.path)])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def test_every_monitoring_run_is_tracked_beside_the_training_runs(trained_root: Root, unchanged_ledger: str) -> None:
    from forecaster.registry.registry import create_client

    assert exit_code_of(trained_root, "small", "--url", unchanged_ledger) == 0
    client = create_client(trained_root.store_uri)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], "tags.trigger = 'monitor'", order_by=["start_time DESC"])[0]
    assert (run.info.status, run.data.tags["action"], run.data.tags["version"]) == ("FINISHED", "none", "1")
    assert run.data.metrics["live/coverage_80"] == pytest.approx(0.8, abs=0.08)
    expected = {"live/mae", "live/mase", "live/wql_recorded", "live/msis_95", "live/change", "live/input_latest"}
    assert expected <= set(run.data.metrics)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"monitor.json", "monitor.html"}


def test_metrics_are_parsed_by_the_prometheus_client(trained_root: Root, shifted_ledger: str) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = {
        family.name: family
        for family in parser.text_string_to_metric_families(
            render_report_prometheus(build_monitoring_report(trained_root, "small", url=shifted_ledger))
        )
    }
    assert families["forecaster_live_action"].samples[0].value == 1.0
    assert len(families["forecaster_live_step_mae"].samples) == HORIZON


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    slow_packages = ("torch", "sqlalchemy", "matplotlib")
    script = f"import sys, pipelines.cli; print([name for name in {slow_packages} if name in sys.modules])"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
