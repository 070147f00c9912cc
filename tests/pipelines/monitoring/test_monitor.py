"""Looking after a champion: what came beside what was served, on data that go on as they were and on data that do not."""

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
from forecaster.ledger.recording import Keeping, made
from forecaster.ledger.records import Observed, Told, key_of, ticks
from forecaster.ledger.store import Ledger
from forecaster.prediction.predictor import Predictor
from forecaster.registry.registry import CHAMPION, Registry
from forecaster.series import Series
from pipelines import cli
from pipelines.monitoring.monitor import attention, ledger_of, look
from pipelines.monitoring.report import as_html, as_json, as_prometheus
from pipelines.promotion.promote import promote, register
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.training.train import train
from tests.pipelines.conftest import noise, small

SERIES, HOURS, HORIZON = 16, 48, 4


@pytest.fixture(scope="module")
def trained(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root with a champion that says the mean of the history, of white noise about ten."""
    folder = tmp_path_factory.mktemp("monitor")
    root = Root(folder / "root")
    root.path.mkdir()
    shutil.copy(migrated / "mlflow.db", root.path)
    noise(SERIES, 60).to_csv(folder / "meters.csv", index=False)
    done = train(Data(str(folder / "meters.csv")), small(valid_windows=4), root)
    register(done.bundle, root)
    Registry(root.store).set_alias(Registry(root.store).version("small", "1"), "challenger")
    promote("small", root, number=None, force=True)
    return root


def live(
    root: Root,
    file: Path,
    *,
    seed: int = 0,
    shift: float = 0.0,
    spread: float = 1.0,
    unit: float = 1.0,
    group: bool = False,
    hours: int = HOURS,
    changed: slice = slice(HOURS // 2, None),
) -> str:
    """Serves every hour and tells what came; in the changed hours the level is `shift` standard deviations higher."""
    draw = np.random.default_rng(seed)
    y = 10 + draw.normal(size=(SERIES, 60 + hours + HORIZON))
    y[:, 60:][:, changed] = 10 + (y[:, 60:][:, changed] - 10) * spread + shift
    y *= unit
    start = pd.Timestamp("2026-01-10")
    champion = Registry(root.store).resolve("small", CHAMPION)
    predictor = Predictor(artifact.load(next(iter(root.bundles.iterdir()))))
    address = f"sqlite:///{file}"
    ledger = Ledger(address)
    model, keeping = Told("small", champion.number, champion.digest), Keeping(ledger.salt, clear=False)
    records = []
    for hour in range(60, 60 + hours):
        known = [Series(f"meter_{place}", start, "h", row[:hour]) for place, row in enumerate(y)]
        told = predictor.forecast_each(known, HORIZON)
        records += made(predictor, model, known, told, keeping=keeping, drift=None, at=[1e9 + hour] * SERIES)  # type: ignore[arg-type]
    if group:
        records = [one._replace(group="odd" if place % 2 else "even") for place, one in enumerate(records)]
    ledger.record(records)
    stamps = ticks(pd.date_range(start, periods=y.shape[1], freq="h"))
    ledger.observe(
        [Observed(key_of(ledger.salt, f"meter_{place}", start), stamps, row.tolist()) for place, row in enumerate(y)],
        at=2e9,
    )
    ledger.close()
    return address


@pytest.fixture(scope="module")
def same(trained: Root, tmp_path_factory: pytest.TempPathFactory) -> str:
    return live(trained, tmp_path_factory.mktemp("same") / "ledger.db", group=True)


@pytest.fixture(scope="module")
def moved(trained: Root, tmp_path_factory: pytest.TempPathFactory) -> str:
    return live(trained, tmp_path_factory.mktemp("moved") / "ledger.db", shift=2.0)


def test_data_that_go_on_as_they_were_need_nothing(trained: Root, same: str) -> None:
    report = look(trained, "small", url=same)
    assert report.reasons == []
    assert attention(trained, "small", url=same) == []
    assert (report.span.forecasts, report.accuracy.scored) == (SERIES * HOURS, SERIES * HOURS)
    assert set(report.charts) == {"all series", "even", "odd"}
    assert [one.name for one in report.findings if one.calls is None] == []
    assert set(report.accuracy.by_group) == {"even", "odd"}
    assert report.accuracy.overall.coverage[0.8] == pytest.approx(0.8, abs=0.08)


@pytest.mark.parametrize("seed", [1, 2])
def test_other_draws_of_the_same_need_nothing_either(trained: Root, tmp_path: Path, seed: int) -> None:
    assert attention(trained, "small", url=live(trained, tmp_path / "ledger.db", seed=seed)) == []


def test_a_level_that_moved_is_noticed(trained: Root, moved: str) -> None:
    report = look(trained, "small", url=moved)
    change = next(one for one in report.findings if one.name == "change")
    assert change.calls
    chart = report.charts["all series"].chart
    assert chart.side == "above"
    assert chart.alarm is not None
    assert HOURS // 2 <= chart.alarm <= HOURS // 2 + 3
    assert attention(trained, "small", url=moved) == report.reasons != []


def test_noise_that_grew_is_noticed(trained: Root, tmp_path: Path) -> None:
    reasons = attention(trained, "small", url=live(trained, tmp_path / "ledger.db", spread=4.0))
    assert any("intervals" in one for one in reasons)
    assert any("MASE" in one for one in reasons)


def test_a_change_does_not_drown_in_calm_months_nor_is_it_told_for_ever(trained: Root, tmp_path: Path) -> None:
    def error(file: str, changed: slice) -> bool | None:
        report = look(trained, "small", url=live(trained, tmp_path / file, spread=2.5, hours=300, changed=changed))
        return next(one.calls for one in report.findings if one.name == "error")

    assert error("late.db", slice(276, None)), "24 of 300 hours, the latest"
    assert error("early.db", slice(0, 24)) is False, "24 of 300 hours, long ago"


def test_another_unit_is_noticed_in_the_inputs(trained: Root, tmp_path: Path) -> None:
    reasons = attention(trained, "small", url=live(trained, tmp_path / "ledger.db", unit=1000.0))
    assert [one for one in reasons if one.startswith(("the level", "the change"))] == reasons != []


def test_only_forecasts_since_a_moment_count(trained: Root, same: str) -> None:
    report = look(trained, "small", url=same, since=datetime.fromtimestamp(1e9 + 60 + HOURS - 2, UTC))
    assert report.span.forecasts == 2 * SERIES
    assert report.findings[-1].name.startswith("input")


def test_nothing_is_said_of_too_little(trained: Root, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(address).close()
    report = look(trained, "small", url=address)
    assert report.reasons == []
    assert {one.calls for one in report.findings} == {None}
    for text in (as_html(report), as_json(report), as_prometheus(report)):
        assert "nan" not in text.lower().replace("finance", "")


def test_a_bundle_from_before_says_that_it_does_not_know_its_inputs(
    trained: Root, same: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = artifact.read_manifest

    def without(folder: Path) -> artifact.Manifest:
        manifest = before(folder)
        return manifest.model_copy(
            update={"facts": {name: fact for name, fact in manifest.facts.items() if name != "inputs"}}
        )

    monkeypatch.setattr(artifact, "read_manifest", without)
    report = look(trained, "small", url=same)
    assert [one.reason for one in report.findings if one.name == "inputs"] == [
        "the bundle does not say what it was trained on: train it again"
    ]
    assert report.reasons == []


def test_without_a_ledger_nothing_is_wanted_and_the_command_says_so(trained: Root) -> None:
    assert attention(trained, "small") == []
    assert ledger_of(trained, "on") == ledger_of(trained, None) == f"sqlite:///{trained.slot}/ledger.db"
    with pytest.raises(LedgerError, match="FORECASTER_SERVING_LEDGER=on"):
        look(trained, "small")
    with pytest.raises(NoSuchModel):
        look(trained, "other")


def test_a_retraining_that_is_asked_for_if_needed_hears_of_it(
    trained: Root, moved: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["retrain", str(trained.path.parent / "meters.csv"), "--if-needed", "--root", str(trained.path)]
    config = trained.path.parent / "small.yaml"
    config.write_text(json.dumps(small(valid_windows=4).model_dump(mode="json")))
    monkeypatch.setenv("FORECASTER_SERVING_LEDGER", "postgresql+psycopg://me:fck_secret@127.0.0.1:9/none")
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--config", str(config)])
    assert not ended.value.code
    told = capsys.readouterr()
    assert told.out.startswith("nothing to do")
    assert "the ledger was not asked" in told.err
    assert "fck_secret" not in told.err
    monkeypatch.setenv("FORECASTER_SERVING_LEDGER", moved)
    monkeypatch.setattr("pipelines.retraining.retrain.retrain_once", _stop)
    with pytest.raises(_Stopped):
        cli.main([*arguments, "--config", str(config)])
    assert capsys.readouterr().out.startswith("needed  the CUSUM of one-step errors")


class _Stopped(Exception):
    """Where a retraining would begin."""


def _stop(*_: object, **__: object) -> None:
    raise _Stopped


def command(root: Root, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["monitor", *arguments, "--root", str(root.path)])
    code = ended.value.code
    return code if isinstance(code, int) else 0


def test_the_command_ends_with_what_it_found(
    trained: Root,
    same: str,
    moved: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FORECASTER_SERVING_LEDGER", raising=False)
    files = [tmp_path / name for name in ("page.html", "told.json", "live.prom")]
    flags = [
        part
        for flag, path in zip(("--html", "--json", "--prometheus"), files, strict=True)
        for part in (flag, str(path))
    ]
    assert command(trained, "small", "--url", moved, *flags) == 3
    told = capsys.readouterr()
    assert "action is needed; the CUSUM of one-step errors of all series" in told.err
    page, report, figures = (path.read_text() for path in files)
    assert "Action is needed" in page
    assert page.count("data:image/png;base64,") == 2
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert json.loads(report)["reasons"] == [told.err.strip().removeprefix("forecaster: action is needed; ")]
    assert 'forecaster_live_action{model="small",version="1"} 1.0' in figures
    assert 'forecaster_live_step_mae{model="small",version="1",step="4"}' in figures
    for line in figures.splitlines():
        assert line.startswith("# ") or re.fullmatch(r'forecaster_live_\w+\{(\w+="[^"]*",?)+\} -?[0-9.e+-]+', line), (
            line
        )
    cli_same = command_quiet(trained, "small", "--url", same)
    assert cli_same == 0
    assert command(trained, "other", "--url", same) == 1
    assert command(trained, "small") == 1
    assert command(trained, "small", "--url", "nonsense://me:fck_secret@host") == 1
    assert "fck_secret" not in "".join(capsys.readouterr())


def command_quiet(root: Root, *arguments: str) -> int:
    """The exit code, 0 where the command ends without one."""
    try:
        cli.main(["monitor", *arguments, "--root", str(root.path)])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def test_every_look_is_a_run_beside_the_trainings(trained: Root, same: str) -> None:
    from forecaster.registry.registry import connect

    assert command_quiet(trained, "small", "--url", same) == 0
    client = connect(trained.store)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], "tags.trigger = 'monitor'", order_by=["start_time DESC"])[0]
    assert (run.info.status, run.data.tags["action"], run.data.tags["version"]) == ("FINISHED", "none", "1")
    assert run.data.metrics["live/coverage_80"] == pytest.approx(0.8, abs=0.08)
    assert {"live/mae", "live/mase", "live/change", "live/input_latest"} <= set(run.data.metrics)
    assert {one.path for one in client.list_artifacts(run.info.run_id)} >= {"monitor.json", "monitor.html"}


def test_figures_are_readable_for_prometheus_own_parser(trained: Root, moved: str) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = {
        one.name: one for one in parser.text_string_to_metric_families(as_prometheus(look(trained, "small", url=moved)))
    }
    assert families["forecaster_live_action"].samples[0].value == 1.0
    assert len(families["forecaster_live_step_mae"].samples) == HORIZON


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "sqlalchemy", "matplotlib")
    script = f"import sys, pipelines.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
