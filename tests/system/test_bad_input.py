"""Bad command lines and bad files: the right exit code, a message that helps, no traceback, nothing written."""

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
from pipelines.promotion.promote import register
from pipelines.settings import Root
from pipelines.sources import Data
from pipelines.training.train import train
from tests.pipelines.conftest import noise, small
from tests.system.processes import forecaster, tree, write_config

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")  # Lightning's

STAMPS = pd.date_range("2026-01-01", periods=40, freq="D").strftime("%Y-%m-%d")
HEADER = "unique_id,ds,y\n"


def csv(*, y: object = 1.0, at: int = 0, stamp: str | None = None) -> str:
    """Forty days of one series, one row of them spoiled."""
    rows = [[f"a,{day}", str(number)] for number, day in enumerate(STAMPS)]
    rows[at] = [f"a,{stamp or STAMPS[at]}", str(y)]
    return HEADER + "".join(",".join(row) + "\n" for row in rows)


def config(folder: Path, change: Callable[[str], str]) -> str:
    return change(write_config(folder / "config.yaml", small()).read_text())


BAD_TABLES: dict[str, tuple[str | bytes, list[str]]] = {
    "empty.csv": ("", ["empty.csv", "No columns"]),
    "header.csv": (HEADER, ["at least one row"]),
    "column.csv": (
        HEADER.replace("y", "value") + "a,2026-01-01,1\n",
        ["y not found among: unique_id, ds, value", "--y-column"],
    ),
    "text.csv": (csv(y="many", at=7), ["row 7 holds 'many'", "Expected numbers in column 'y'"]),
    "infinity.csv": (csv(y="inf", at=7), ["row 7 is infinite", "finite numbers"]),
    "duplicate.csv": (csv() + f"a,{STAMPS[3]},99\n", ["series 'a'", "2026-01-04", "99"]),
    "irregular.csv": (csv(at=9, stamp="2026-01-10T05:00:00"), ["series 'a'", "2026-01-10T05:00:00"]),
    "stamp.csv": (csv(at=5, stamp="soon"), ["ISO 8601", "row 5 holds 'soon'"]),
    "number.csv": (HEADER + "a,1.5,1\na,2.5,2\n", ["numbers such as 1.5 that are not whole"]),
    "compact.csv": (HEADER + "a,20260101,1\na,20260102,2\n", ["such as 20260101", "Write dates like 2026-01-31"]),
    "short.csv": (HEADER + "".join(f"a,{day},1\n" for day in STAMPS[:5]), ["has 5", "longer history"]),
    "garbage.csv": (bytes(range(256)) * 40, ["garbage.csv", "Expected a readable table"]),
    "garbage.parquet": (bytes(range(256)) * 40, ["garbage.parquet", "Expected a readable table"]),
    "garbage.csv.gz": (b"nothing packed", ["garbage.csv.gz", "Expected a readable table"]),
    "latin.csv": (csv().replace("a,", "Köln,").encode("latin-1"), ["latin.csv", "UTF-8"]),
    "ragged.csv": (csv() + "a,2026-03-01,1,2,3\n", ["ragged.csv", "Expected a readable table"]),
    "brief.csv": (HEADER + "".join(f"a,{day},1\n" for day in STAMPS[:7]), ["has 7", "longer history"]),
    "nothing.csv": (HEADER + "".join(f"a,{day},\n" for day in STAMPS), ["observed"]),
    "table.xlsx": (b"PK", [".csv, .csv.gz, .parquet", "table.xlsx"]),
    "README": ("hello", [".csv, .csv.gz, .parquet", "README"]),
}

BAD_CONFIGS: dict[str, tuple[Callable[[str], str], list[str]]] = {
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

BAD_OPTIONS: dict[str, tuple[list[str], list[str]]] = {
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


class Refused(NamedTuple):
    code: int
    said: str


Refuse = Callable[..., Refused]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a command that must fail: with a message on stderr alone, and without a traceback."""

    def run(*arguments: object) -> Refused:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        assert said.err.strip()
        assert isinstance(left.value.code, int)
        return Refused(left.value.code, " ".join(said.err.replace("│", " ").split()))

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("FORECASTER_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def holds(said: str, words: list[str]) -> None:
    assert not [word for word in words if word not in said], said


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused_with_its_place_and_nothing_is_written(name: str, here: Path, refuse: Refuse) -> None:
    content, words = BAD_TABLES[name]
    (here / name).write_bytes(content.encode() if isinstance(content, str) else content)
    before = tree(here)
    code, said = refuse("train", name, "--horizon", 3)
    assert code == 2
    holds(said, words)
    assert tree(here) == before
    assert not (here / ".forecaster" / "bundles").exists()


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_specification_is_refused_with_its_field_and_nothing_is_written(
    name: str, here: Path, refuse: Refuse
) -> None:
    change, words = BAD_CONFIGS[name]
    text = config(here, change)
    assert text != (here / "config.yaml").read_text(), "the case changes nothing"
    (here / "config.yaml").write_text(text)
    (here / "good.csv").write_text(csv())
    before = tree(here)
    code, said = refuse("train", "good.csv", "--config", "config.yaml")
    assert code == 2
    holds(said, words)
    assert tree(here) == before


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_is_refused_by_its_name_and_nothing_is_written(name: str, here: Path, refuse: Refuse) -> None:
    options, words = BAD_OPTIONS[name]
    (here / "good.csv").write_text(csv())
    before = tree(here)
    code, said = refuse("train", "good.csv", *options)
    assert code == 2
    holds(said, words)
    assert tree(here) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "none.csv", "--horizon", "3"], ["none.csv", "found none", "Check the path"]),
        (["train", "folder.csv", "--horizon", "3"], ["files ending in .csv", "folder.csv", "found none"]),
        (["train", "good.csv", "--config", "folder.csv"], ["folder.csv", "cannot be read"]),
        (["train", "good.csv", "--horizon", "3", "--root", "good.csv/root"], ["good.csv", "root", "--root"]),
        (["train", "good.csv", "--horizon", "3", "--root", "good.csv"], ["good.csv", "root", "--root"]),
        (["retrain", "good.csv", "--horizon", "3", "--test-windows", "0"], ["test-windows", "test window"]),
        (["retrain", "good.csv", "--horizon", "3", "--test-windows=-1"], ["test-windows", "test window"]),
        (["demo", "--configs", "nowhere"], ["hospital.yaml", "nowhere"]),
        (["train"], ["DATA", "--sql", "found neither"]),
        (["fly"], ["fly"]),
    ],
)
def test_a_path_or_a_command_that_is_not_one_is_refused(
    arguments: list[str], words: list[str], here: Path, refuse: Refuse
) -> None:
    (here / "good.csv").write_text(csv())
    (here / "folder.csv").mkdir()
    before = tree(here)
    code, said = refuse(*arguments)
    assert code == 2
    holds(said, words)
    assert tree(here) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["forecast", "small", "good.csv"],
        ["forecast", "./no-folder", "good.csv"],
        ["backtest", "small@challenger", "good.csv"],
        ["promote", "small"],
        ["serve"],
    ],
)
def test_what_needs_a_registry_says_that_there_is_none_and_makes_none(
    arguments: list[str], here: Path, refuse: Refuse
) -> None:
    (here / "good.csv").write_text(csv())
    code, said = refuse(*arguments)
    assert code == 1
    assert "Expected a" in said
    assert str(here / ".forecaster") in said
    assert not (here / ".forecaster").exists()


class Trained(NamedTuple):
    """A root with one version that was never tested (1) and one that was (2, the challenger)."""

    root: Root
    bundle: Path
    data: Path


@pytest.fixture(scope="module")
def trained(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    root, data = Root(folder / "root"), folder / "good.csv"
    root.path.mkdir()
    shutil.copy(migrated / "mlflow.db", root.path)
    noise().to_csv(data, index=False)
    for windows in (0, 1):
        bundle = train(Data(str(data)), small(), root, test_windows=windows).bundle
        Registry(root.store).set_alias(register(bundle, root), CHALLENGER)
    return Trained(root, bundle, data)


@pytest.fixture
def bundle(trained: Trained, tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    return Path(shutil.copytree(trained.bundle, tmp_path / "bundle"))


def test_only_a_version_that_is_there_and_was_tested_is_promoted(trained: Trained, here: Path, refuse: Refuse) -> None:
    root = ["--root", trained.root.path]
    for version in ("7", "two"):
        code, said = refuse("promote", "small", "--version", version, *root)
        assert code == 1
        assert version in said
    code, said = refuse("promote", "nobody", *root)
    assert code == 1
    assert "nobody" in said
    code, said = refuse("promote", "small", "--version", 1, *root)
    assert code == 3, "a gate refused it"
    holds(said, ["version 1", "never tested", "--force"])
    code, said = refuse("forecast", "small", trained.data, *root)
    assert code == 1
    holds(said, ["'champion'", "challenger", "Promote"])


@pytest.mark.parametrize("command", ["forecast", "backtest"])
@pytest.mark.parametrize(
    ("options", "words"),
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
def test_a_bad_option_is_refused_before_any_work(
    command: str, options: list[str], words: list[str], trained: Trained, here: Path, refuse: Refuse
) -> None:
    """No model is loaded for it: there is none of that name."""
    code, said = refuse(command, "no-such-model", trained.data, "--root", trained.root.path, *options)
    assert code == 2
    holds(said, words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--windows", "0"], ["--windows", "at least 1"]),
        (["--windows=-2"], ["--windows", "at least 1"]),
        (["--stride", "0"], ["--stride", "at least 1"]),
        (["--windows", "500", "--stride", "40"], ["fewer windows"]),
        (["--windows", "5000"], ["20000 steps", "fewer windows"]),
    ],
)
def test_a_backtest_needs_windows_that_the_data_can_give(
    options: list[str], words: list[str], trained: Trained, here: Path, refuse: Refuse
) -> None:
    code, said = refuse("backtest", trained.bundle, trained.data, *options)
    assert code == 2
    holds(said, words)
    assert tree(here) == {}


def test_a_history_of_another_frequency_is_told_from_a_short_one(bundle: Path, here: Path, refuse: Refuse) -> None:
    (here / "daily.csv").write_text(csv())
    code, said = refuse("forecast", bundle, "daily.csv")
    assert code == 2
    holds(said, ["'D'", "'h'"])
    (here / "short.csv").write_text(HEADER + "".join(f"a,2026-01-01T0{hour}:00,1\n" for hour in range(4)))
    code, said = refuse("forecast", bundle, "short.csv")
    assert code == 2
    holds(said, ["has 4 steps", "at least 8"])


@pytest.mark.parametrize("name", ["manifest.json", "spec.json", "weights.safetensors", "golden.json", "card.md"])
def test_a_bundle_is_refused_when_any_of_its_files_is_changed_cut_or_gone(
    name: str, bundle: Path, here: Path, refuse: Refuse
) -> None:
    path = bundle / name
    good = path.read_bytes()
    for content in (good[: len(good) // 2], b"", good[:-1] + bytes([good[-1] ^ 1])):
        path.write_bytes(content)
        code, said = refuse("verify", bundle)
        if name == "manifest.json" and len(content) == len(good):  # then the file's own syntax is broken
            assert "manifest" in said
        assert code == 1
    path.unlink()
    code, said = refuse("verify", bundle)
    assert code == 1
    holds(said, [name, "cannot be read"])


def test_a_damaged_bundle_is_neither_registered_nor_used(
    trained: Trained, bundle: Path, here: Path, refuse: Refuse
) -> None:
    before = Registry(trained.root.store).versions("small")
    (bundle / "weights.safetensors").write_bytes(b"no weights")
    for command in (["register", bundle], ["forecast", bundle, trained.data], ["backtest", bundle, trained.data]):
        code, said = refuse(*command, "--root", trained.root.path)
        assert code == 1
        holds(said, ["weights.safetensors", "digest"])
    assert Registry(trained.root.store).versions("small") == before


def test_a_bundle_of_another_root_has_no_run_to_be_registered_with(
    migrated: Path, bundle: Path, here: Path, refuse: Refuse
) -> None:
    (here / "other").mkdir()
    shutil.copy(migrated / "mlflow.db", here / "other")
    code, said = refuse("register", bundle, "--root", "other")
    assert code == 1
    holds(said, ["Run", "not in the store"])


@pytest.mark.parametrize("uri", ["nonsense://host", "sqlite:////proc/no/mlflow.db", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_reached_is_told_by_its_address(
    uri: str, trained: Trained, here: Path, refuse: Refuse
) -> None:
    code, said = refuse("promote", "small", "--tracking-uri", uri)
    assert code == 1
    assert uri.split("//")[1].strip("/").split("/")[0] in said


def test_values_beyond_reckoning_are_refused_before_they_are_forecast(bundle: Path, here: Path, refuse: Refuse) -> None:
    stamps = pd.date_range("2026-01-01", periods=40, freq="h")
    values = np.where(np.arange(40) % 2, 1.7e308, -1.7e308)
    pd.DataFrame({"unique_id": "a", "ds": stamps, "y": values}).to_csv(here / "huge.csv", index=False)
    code, said = refuse("forecast", bundle, "huge.csv", "--out", "out.csv")
    assert code == 2
    holds(said, ["1e+100", "Correct"])
    assert not (here / "out.csv").exists()


@pytest.mark.slow
def test_real_processes_end_with_the_codes_that_scripts_rely_on(trained: Trained, here: Path) -> None:
    (here / "text.csv").write_text(csv(y="many"))
    root = ["--root", trained.root.path]
    for arguments, code, word in (
        (["train", "text.csv", "--horizon", 3], 2, "'many'"),
        (["promote", "small", "--version", 1, *root], 3, "never tested"),
        (["verify", here], 1, "manifest.json"),
        (["serve", "small", "--port", 99999], 2, "PORT"),
        (["serve"], 1, "FORECASTER_SERVING_MODEL"),
        (["serve", "smal", *root], 1, "'smal'"),
    ):
        done = forecaster(*arguments, folder=here)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert word in done.stderr
    assert not (here / ".forecaster").exists()
