"""Bad command lines and files: the right exit code, a helpful message, no traceback, and nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from forecaster.registry.registry import CHALLENGER, Registry
from pipelines.cli import main
from pipelines.promotion.promote import register_bundle
from pipelines.settings import Root
from pipelines.sources import DataSource
from pipelines.training.train import TrainOptions, train
from tests.pipelines.conftest import make_noise_frame, make_small_spec
from tests.system.fork_server import ForkServer
from tests.system.processes import file_sizes, run_forecaster, write_config

pytestmark = pytest.mark.integration

TIMESTAMPS = pd.date_range("2026-01-01", periods=40, freq="D").strftime("%Y-%m-%d")
HEADER = "unique_id,ds,y\n"


def make_csv(*, y: object = 1.0, row_index: int = 0, timestamp: str | None = None) -> str:
    """Returns forty days of one series with one invalid row."""
    rows = [[f"a,{day}", str(number)] for number, day in enumerate(TIMESTAMPS)]
    rows[row_index] = [f"a,{timestamp or TIMESTAMPS[row_index]}", str(y)]
    return HEADER + "".join(",".join(row) + "\n" for row in rows)


def write_changed_config(folder: Path, change: Callable[[str], str]) -> str:
    return change(write_config(folder / "config.yaml", make_small_spec()).read_text())


INVALID_TABLES: dict[str, tuple[str | bytes, list[str]]] = {
    "empty.csv": ("", ["empty.csv", "the file is empty"]),
    "header.csv": (HEADER, ["at least one row"]),
    "column.csv": (
        HEADER.replace("y", "value") + "a,2026-01-01,1\n",
        ["y not found among: unique_id, ds, value", "--y-column"],
    ),
    "text.csv": (make_csv(y="many", row_index=7), ["row 7 holds 'many'", "Expected numbers in column 'y'"]),
    "infinity.csv": (make_csv(y="inf", row_index=7), ["row 7 is infinite", "finite numbers"]),
    "duplicate.csv": (make_csv() + f"a,{TIMESTAMPS[3]},99\n", ["series 'a'", "2026-01-04", "99"]),
    "irregular.csv": (make_csv(row_index=9, timestamp="2026-01-10T05:00:00"), ["series 'a'", "2026-01-10T05:00:00"]),
    "stamp.csv": (make_csv(row_index=5, timestamp="soon"), ["ISO 8601", "row 5 holds 'soon'"]),
    "number.csv": (HEADER + "a,1.5,1\na,2.5,2\n", ["numbers such as 1.5 that are not integers"]),
    "compact.csv": (HEADER + "a,20260101,1\na,20260102,2\n", ["such as 20260101", "Write dates like 2026-01-31"]),
    "short.csv": (HEADER + "".join(f"a,{day},1\n" for day in TIMESTAMPS[:5]), ["has 5", "longer history"]),
    "garbage.csv": (bytes(range(256)) * 40, ["garbage.csv", "Expected a readable table"]),
    "garbage.parquet": (bytes(range(256)) * 40, ["garbage.parquet", "Expected a readable table"]),
    "garbage.csv.gz": (b"nothing packed", ["garbage.csv.gz", "Expected a readable table"]),
    "latin.csv": (make_csv().replace("a,", "Köln,").encode("latin-1"), ["latin.csv", "UTF-8"]),
    "ragged.csv": (make_csv() + "a,2026-03-01,1,2,3\n", ["ragged.csv", "Expected a readable table"]),
    "brief.csv": (HEADER + "".join(f"a,{day},1\n" for day in TIMESTAMPS[:7]), ["has 7", "longer history"]),
    "nothing.csv": (HEADER + "".join(f"a,{day},\n" for day in TIMESTAMPS), ["observed"]),
    "table.xlsx": (b"PK", [".csv, .csv.gz, .parquet", "table.xlsx"]),
    "README": ("hello", [".csv, .csv.gz, .parquet", "README"]),
}

INVALID_CONFIGS: dict[str, tuple[Callable[[str], str], list[str]]] = {
    "unknown key": (lambda text: text + "colour: red\n", ["colour", "config.yaml"]),
    "unknown key below": (lambda text: text.replace("  seed: 0", "  seed: 0\n  speed: 1"), ["training.speed"]),
    "wrong type": (lambda text: text.replace("context: 8", "context: many"), ["context", "integer"]),
    "no mapping": (lambda text: "- a\n- b\n", ["config.yaml", "spec"]),
    "nothing in it": (lambda text: "", ["config.yaml", "spec"]),
    "broken": (lambda text: "name: [a\nb: }", ["Expected YAML", "line"]),
    "not text": (lambda text: text + "\x00", ["Expected YAML", "config.yaml"]),
    "rate not a number": (
        lambda text: text.replace("learning_rate: 0.001", "learning_rate: .nan"),
        ["training.learning_rate"],
    ),
    "rate without end": (
        lambda text: text.replace("learning_rate: 0.001", "learning_rate: .inf"),
        ["training.learning_rate"],
    ),
    "seed too large": (lambda text: text.replace("seed: 0", "seed: 2147483648"), ["training.seed"]),
    "name of no model": (lambda text: text.replace("name: small", "name: a/b"), ["name"]),
    "a missing field": (lambda text: text.replace("context: 8\n", ""), ["context", "required"]),
}

INVALID_OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "no horizon and no config": ([], ["--config", "--horizon"]),
    "horizon 0": (["--horizon", "0"], ["--horizon", "at least 1", "0"]),
    "horizon -1": (["--horizon=-1"], ["--horizon", "at least 1", "-1"]),
    "horizon of a million million": (["--horizon", str(10**12)], ["horizon", "100000"]),
    "horizon as a word": (["--horizon", "far"], ["far", "--horizon"]),
    "negative seed": (["--horizon", "3", "--seed=-1"], ["training.seed"]),
    "seed too large": (["--horizon", "3", "--seed", str(2**31)], ["training.seed"]),
    "negative test windows": (["--horizon", "3", "--test-windows=-1"], ["test-windows", "-1"]),
    "too many test windows": (["--horizon", "3", "--test-windows", "1000"], ["3000 steps", "fewer windows"]),
    "unknown frequency": (["--horizon", "3", "--freq", "fortnight"], ["'fortnight'", "15min"]),
    "frequency of another kind": (["--horizon", "3", "--freq", "h"], ["'h'", "series 'a'"]),
    "backward frequency": (["--horizon", "3", "--freq=-1D"], ["forward"]),
    "config that is not there": (["--config", "none.yaml"], ["none.yaml"]),
    "unknown option": (["--horizon", "3", "--colour", "red"], ["--colour"]),
    "two data sets": (["--horizon", "3", "another.csv"], ["another.csv"]),
}


class FailedCommand(NamedTuple):
    code: int
    stderr: str


RunFailing = Callable[..., FailedCommand]


@pytest.fixture
def run_failing(capsys: pytest.CaptureFixture[str]) -> RunFailing:
    """Runs a command that must fail with a message on stderr only and without a traceback."""

    def run(*arguments: object) -> FailedCommand:
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert captured.err.strip()
        assert isinstance(error.value.code, int)
        return FailedCommand(error.value.code, " ".join(captured.err.replace("│", " ").split()))

    return run


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("FORECASTER_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def assert_contains(text: str, phrases: list[str]) -> None:
    assert not [phrase for phrase in phrases if phrase not in text], text


@pytest.mark.parametrize("name", INVALID_TABLES)
def test_an_invalid_table_is_rejected_with_its_location_and_nothing_is_written(
    name: str, working_folder: Path, run_failing: RunFailing
) -> None:
    content, phrases = INVALID_TABLES[name]
    (working_folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    before = file_sizes(working_folder)
    code, stderr = run_failing("train", name, "--horizon", 3)
    assert code == 2
    assert_contains(stderr, phrases)
    assert file_sizes(working_folder) == before
    assert not (working_folder / ".forecaster" / "bundles").exists()


@pytest.mark.parametrize("name", INVALID_CONFIGS)
def test_an_invalid_spec_is_rejected_with_its_field_and_nothing_is_written(
    name: str, working_folder: Path, run_failing: RunFailing
) -> None:
    change, phrases = INVALID_CONFIGS[name]
    text = write_changed_config(working_folder, change)
    assert text != (working_folder / "config.yaml").read_text(), "the case does not change the file"
    (working_folder / "config.yaml").write_text(text)
    (working_folder / "good.csv").write_text(make_csv())
    before = file_sizes(working_folder)
    code, stderr = run_failing("train", "good.csv", "--config", "config.yaml")
    assert code == 2
    assert_contains(stderr, phrases)
    assert file_sizes(working_folder) == before


@pytest.mark.parametrize("name", INVALID_OPTIONS)
def test_an_invalid_option_is_rejected_by_name_and_nothing_is_written(
    name: str, working_folder: Path, run_failing: RunFailing
) -> None:
    options, phrases = INVALID_OPTIONS[name]
    (working_folder / "good.csv").write_text(make_csv())
    before = file_sizes(working_folder)
    code, stderr = run_failing("train", "good.csv", *options)
    assert code == 2
    assert_contains(stderr, phrases)
    assert file_sizes(working_folder) == before


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        (["train", "none.csv", "--horizon", "3"], ["none.csv", "found none", "Check the path"]),
        (["train", "folder.csv", "--horizon", "3"], ["files ending in .csv", "folder.csv", "found none"]),
        (["train", "good.csv", "--config", "folder.csv"], ["folder.csv", "cannot be read"]),
        (["train", "good.csv", "--horizon", "3", "--root", "good.csv/root"], ["good.csv", "root", "--root"]),
        (["train", "good.csv", "--horizon", "3", "--root", "good.csv"], ["good.csv", "root", "--root"]),
        (["retrain", "none.csv", "--horizon", "3", "--test-windows", "0"], ["test-windows", "test window"]),
        (["retrain", "none.csv", "--if-needed"], ["--config FILE or --horizon STEPS"]),
        (["retrain", "good.csv", "--horizon", "3", "--test-windows=-1"], ["test-windows", "test window"]),
        (["demo", "--configs", "nowhere"], ["hospital.yaml", "nowhere"]),
        (["train"], ["DATA", "--sql", "found neither"]),
        (["fly"], ["fly"]),
    ],
)
def test_an_invalid_path_or_command_is_rejected(
    arguments: list[str], phrases: list[str], working_folder: Path, run_failing: RunFailing
) -> None:
    (working_folder / "good.csv").write_text(make_csv())
    (working_folder / "folder.csv").mkdir()
    before = file_sizes(working_folder)
    code, stderr = run_failing(*arguments)
    assert code == 2
    assert_contains(stderr, phrases)
    assert file_sizes(working_folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["forecast", "small", "good.csv"],
        ["forecast", "./no-folder", "good.csv"],
        ["backtest", "small@challenger", "good.csv"],
        ["promote", "small"],
    ],
)
def test_a_command_without_its_registry_reports_it_and_creates_none(
    arguments: list[str], working_folder: Path, run_failing: RunFailing
) -> None:
    (working_folder / "good.csv").write_text(make_csv())
    code, stderr = run_failing(*arguments)
    assert code == 1
    assert "Expected a" in stderr
    assert str(working_folder / ".forecaster") in stderr
    assert not (working_folder / ".forecaster").exists()


class TrainedRoot(NamedTuple):
    """A root with an untested version (1) and a tested version (2, the challenger)."""

    root: Root
    bundle: Path
    data: Path


@pytest.fixture(scope="module")
def trained_root(migrated_root: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRoot:
    folder = tmp_path_factory.mktemp("trained")
    root, data = Root(folder / "root"), folder / "good.csv"
    root.path.mkdir()
    shutil.copy(migrated_root / "mlflow.db", root.path)
    make_noise_frame().to_csv(data, index=False)
    for windows in (0, 1):
        bundle = train(DataSource(str(data)), make_small_spec(), root, TrainOptions(test_windows=windows)).bundle
        Registry(root.store_uri).set_alias(register_bundle(bundle, root), CHALLENGER)
    return TrainedRoot(root, bundle, data)


@pytest.fixture
def bundle_copy(trained_root: TrainedRoot, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(trained_root.bundle, tmp_path / "bundle"))


def test_only_an_existing_tested_version_is_promoted(
    trained_root: TrainedRoot, working_folder: Path, run_failing: RunFailing
) -> None:
    root = ["--root", trained_root.root.path]
    for version in ("7", "two"):
        code, stderr = run_failing("promote", "small", "--version", version, *root)
        assert code == 1
        assert version in stderr
    code, stderr = run_failing("promote", "nobody", *root)
    assert code == 1
    assert "nobody" in stderr
    code, stderr = run_failing("promote", "small", "--version", 1, *root)
    assert code == 3, "rejected by the gate"
    assert_contains(stderr, ["version 1", "never tested", "--force"])
    code, stderr = run_failing("forecast", "small", trained_root.data, *root)
    assert code == 1
    assert_contains(stderr, ["'champion'", "challenger", "Promote"])


@pytest.mark.parametrize("command", ["forecast", "backtest"])
@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        (["--horizon", "0"], ["--horizon", "at least 1"]),
        (["--horizon=-1"], ["--horizon", "at least 1"]),
        (["--horizon", str(10**12)], ["--horizon", "at most 100000"]),
        (["--out", "no/folder/a.csv"], ["--out", "no/folder"]),
        (["--out", "."], ["--out", "folder"]),
        (["--plot", "no/folder/a.png"], ["--plot", "no/folder"]),
        (["--plot", "picture.docx"], ["--plot", ".png", "picture.docx"]),
    ],
)
def test_an_invalid_option_is_rejected_before_any_work(
    command: str,
    options: list[str],
    phrases: list[str],
    trained_root: TrainedRoot,
    working_folder: Path,
    run_failing: RunFailing,
) -> None:
    """No model of that name exists, so loading it first would fail with another error."""
    code, stderr = run_failing(command, "no-such-model", trained_root.data, "--root", trained_root.root.path, *options)
    assert code == 2
    assert_contains(stderr, phrases)


@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        (["--windows", "0"], ["--windows", "at least 1"]),
        (["--windows=-2"], ["--windows", "at least 1"]),
        (["--stride", "0"], ["--stride", "at least 1"]),
        (["--windows", "500", "--stride", "40"], ["fewer windows"]),
        (["--windows", "5000"], ["20000 steps", "fewer windows"]),
    ],
)
def test_a_backtest_requires_enough_windows_in_the_data(
    options: list[str], phrases: list[str], trained_root: TrainedRoot, working_folder: Path, run_failing: RunFailing
) -> None:
    code, stderr = run_failing("backtest", trained_root.bundle, trained_root.data, *options)
    assert code == 2
    assert_contains(stderr, phrases)
    assert file_sizes(working_folder) == {}


def test_a_wrong_frequency_is_distinguished_from_a_short_history(
    bundle_copy: Path, working_folder: Path, run_failing: RunFailing
) -> None:
    (working_folder / "daily.csv").write_text(make_csv())
    code, stderr = run_failing("forecast", bundle_copy, "daily.csv")
    assert code == 2
    assert_contains(stderr, ["'D'", "'h'"])
    (working_folder / "short.csv").write_text(HEADER + "".join(f"a,2026-01-01T0{hour}:00,1\n" for hour in range(4)))
    code, stderr = run_failing("forecast", bundle_copy, "short.csv")
    assert code == 2
    assert_contains(stderr, ["has 4 steps", "at least 8"])


@pytest.mark.parametrize("name", ["manifest.json", "spec.json", "weights.safetensors", "golden.json", "card.md"])
def test_a_bundle_with_a_changed_truncated_or_missing_file_is_rejected(
    name: str, bundle_copy: Path, working_folder: Path, run_failing: RunFailing
) -> None:
    path = bundle_copy / name
    original = path.read_bytes()
    for content in (original[: len(original) // 2], b"", original[:-1] + bytes([original[-1] ^ 1])):
        path.write_bytes(content)
        code, stderr = run_failing("verify", bundle_copy)
        if name == "manifest.json" and len(content) == len(original):  # the JSON itself is invalid then
            assert "manifest" in stderr
        assert code == 1
    path.unlink()
    code, stderr = run_failing("verify", bundle_copy)
    assert code == 1
    assert_contains(stderr, [name, "cannot be read"])


def test_a_damaged_bundle_is_neither_registered_nor_used(
    trained_root: TrainedRoot, bundle_copy: Path, working_folder: Path, run_failing: RunFailing
) -> None:
    before = Registry(trained_root.root.store_uri).list_versions("small")
    (bundle_copy / "weights.safetensors").write_bytes(b"no weights")
    for command in (
        ["register", bundle_copy],
        ["forecast", bundle_copy, trained_root.data],
        ["backtest", bundle_copy, trained_root.data],
    ):
        code, stderr = run_failing(*command, "--root", trained_root.root.path)
        assert code == 1
        assert_contains(stderr, ["weights.safetensors", "digest"])
    assert Registry(trained_root.root.store_uri).list_versions("small") == before


@pytest.mark.parametrize("uri", ["nonsense://host", "sqlite:////proc/no/mlflow.db", "http://127.0.0.1:9"])
def test_an_unreachable_store_is_reported_with_its_address(
    uri: str, trained_root: TrainedRoot, working_folder: Path, run_failing: RunFailing
) -> None:
    code, stderr = run_failing("promote", "small", "--tracking-uri", uri)
    assert code == 1
    assert uri.split("//")[1].strip("/").split("/")[0] in stderr


def test_overflowing_values_are_rejected_before_the_forecast(
    bundle_copy: Path, working_folder: Path, run_failing: RunFailing
) -> None:
    timestamps = pd.date_range("2026-01-01", periods=40, freq="h")
    values = np.where(np.arange(40) % 2, 1.7e308, -1.7e308)
    pd.DataFrame({"unique_id": "a", "ds": timestamps, "y": values}).to_csv(working_folder / "huge.csv", index=False)
    code, stderr = run_failing("forecast", bundle_copy, "huge.csv", "--out", "out.csv")
    assert code == 2
    assert_contains(stderr, ["1e+100", "Correct"])
    assert not (working_folder / "out.csv").exists()


def test_real_processes_return_the_documented_exit_codes(
    trained_root: TrainedRoot, working_folder: Path, fork_server: ForkServer
) -> None:
    """The first command is started by a new interpreter, the others by a fork, which is faster."""
    (working_folder / "text.csv").write_text(make_csv(y="many"))
    root = ["--root", trained_root.root.path]
    for arguments, code, phrase in (
        (["promote", "small", "--version", 1, *root], 3, "never tested"),
        (["train", "text.csv", "--horizon", 3], 2, "'many'"),
        (["verify", working_folder], 1, "manifest.json"),
        (["serve", "small", "--port", 99999], 2, "PORT"),
        (["serve", "smal", *root], 2, "The registry has "),
    ):
        is_first = arguments[0] == "promote"
        completed = (
            run_forecaster(*arguments, folder=working_folder)
            if is_first
            else fork_server.capture(arguments, working_folder)
        )
        assert completed.returncode == code, completed.stderr
        assert completed.stdout == ""
        assert "Traceback" not in completed.stderr
        assert phrase in completed.stderr
    assert not (working_folder / ".forecaster").exists()
