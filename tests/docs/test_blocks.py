"""Every block of the documentation runs, or says why it cannot; every command and request that it shows exists."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from docs.generator.blocks import (
    CHAMPION,
    Block,
    ServedModel,
    Session,
    find_blocks,
    list_pages,
    parse_curl,
    parse_serve,
    run_until_first_line,
    split_commands,
)
from docs.generator.page_runs import fill_folder, open_session, run_blocks
from forecaster import Forecaster
from pipelines.cli import app as command_line
from pipelines.cli import main
from serving.routes.openapi import ROUTES
from tests.system.processes import CHECKOUT

PAGES = list_pages()
BLOCKS = [block for page in PAGES for block in find_blocks(page)]
OVERVIEW = "an overview, with arguments of different models"
NUM_SKIPPED = {
    "a server runs until it is stopped": 7,
    OVERVIEW: 1,
    "an overview, with commands of different models": 3,
    "an overview, with commands that run until they are stopped": 3,
    "another library": 13,
    "installs packages": 2,
    "needs Docker": 7,
    "needs a cluster": 2,
    "needs a packaged service": 2,
    "needs a tracking server": 1,
    "needs runs with these ids": 1,
    "takes hours": 1,
    "takes minutes": 6,
    "the scheduler runs until it is stopped": 1,
}


# Pages whose blocks without a language are compared with what their commands print.
PAGES_WITH_OUTPUTS = {"docs/operate/drill.md"}


def page_id(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


def pages_with(accept: Callable[[Block], bool]) -> list[Path]:
    """Returns the pages that have a block of this kind to run."""
    return [page for page in PAGES if any(accept(block) and not block.skip_reason for block in find_blocks(page))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder with the tables that the pages name, and the pretrained network as a bundle.

    The figures that programs open with pyplot are closed afterwards, as at the end of their process.
    """
    monkeypatch.chdir(tmp_path)
    for name in ("FORECASTER_ROOT", "FORECASTER_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    fill_folder(tmp_path)
    yield tmp_path
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """The state of a page; its service of the pretrained network starts with the first request."""
    with open_session(tmp_path) as session:
        yield session


@pytest.mark.integration
@pytest.mark.usefixtures("folder", "short_presets", "unchecked_shapes")
@pytest.mark.filterwarnings("ignore::forecaster.api.ForecastWarning", "ignore::forecaster.api.DataWarning")
@pytest.mark.parametrize("page", pages_with(lambda block: not block.is_slow), ids=page_id)
def test_the_blocks_of_a_page_run(page: Path, session: Session) -> None:
    assert run_blocks(page, session, accept=lambda block: not block.is_slow) > 0


@pytest.mark.nightly
@pytest.mark.usefixtures("folder", "short_presets", "unchecked_shapes")
@pytest.mark.filterwarnings("ignore::forecaster.api.ForecastWarning", "ignore::forecaster.api.DataWarning")
@pytest.mark.parametrize("page", pages_with(lambda block: block.is_slow), ids=page_id)
def test_the_blocks_of_a_page_run_with_their_trainings(page: Path, session: Session) -> None:
    if any(block.names_champion for block in find_blocks(page) if not block.skip_reason):
        register_champion(CHAMPION)
    assert run_blocks(page, session, accept=lambda _: True) > 0
    if page_id(page) in PAGES_WITH_OUTPUTS:
        printed = iter(mask_output("".join(session.outputs)))
        missing = [line for line in mask_output("\n".join(find_outputs(page))) if line not in printed]
        assert missing == [], "the page shows these lines, in this order, and the commands do not print them"


def find_outputs(page: Path) -> list[str]:
    """Returns the blocks of a page without a language: what its commands print."""
    return re.findall(r"(?ms)^```\n(.*?)^```$", re.sub(r"(?ms)^```\w+\n.*?^```$", "", page.read_text()))


def mask_output(text: str) -> list[str]:
    """Returns the lines of an output, without what differs between runs: times and digests."""
    masked = re.sub(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00", "TIME", re.sub(r"\b[0-9a-f]{12}\b", "DIGEST", text))
    return [line.rstrip() for line in masked.splitlines() if line.strip()]


def register_champion(name: str) -> None:
    """Trains a small model with intervals, and makes it the champion of the default root."""
    spec = {
        "name": name,
        "context": 12,
        "horizon": 12,
        "min_history": 6,
        "decoder": "direct",
        "scaling": "last",
        "static": ["region"],
    }
    spec |= {"base": "seasonal_naive", "network": {"hidden": 4}}
    training = {"steps": 40, "epoch_steps": 20, "batch": 8, "valid_windows": 2}
    model = Forecaster(horizon=12, spec=spec | {"training": training}).fit(pd.read_csv("data.csv"))
    model.save("CHAMPION")
    for arguments in (["register", "CHAMPION"], ["promote", name, "--force", "--reason", "the example of a page"]):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert not raised.value.code


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "shell"], ids=lambda block: block.name
)
def test_the_commands_of_a_block_exist(block: Block) -> None:
    """Also those of blocks that never run: each names an existing command, its options and values that they accept."""
    for command in split_commands(block.source):
        if command.words[0] == "forecaster":
            command_line.parse_args(list(command.words[1:]), exit_on_error=False, print_error=False)
        elif command.words[0] == "curl":
            request = parse_curl(command.words)
            path = request.url.partition("//")[2].partition("/")[2].partition("?")[0]
            assert (request.method.lower(), f"/{path}") in {(route.method, route.path) for route in ROUTES}
            assert request.body is None or json.loads(request.body)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_are_in_blocks_that_are_marked_as_shell(page: Path) -> None:
    """A block without a language is an output, which nothing runs."""
    unmarked = re.findall(r"(?ms)^ *```\n(.*?)^ *```$", re.sub(r"(?ms)^ *```\w+\n.*?^ *```$", "", page.read_text()))
    assert [
        text
        for text in unmarked
        if re.match(r"(?:[A-Z_]+=\S+ )*(?:forecaster|curl|python|pip|make|docker|bentoml) ", text)
    ] == []


def test_the_calls_of_an_overview_exist() -> None:
    """A program that lists methods with arguments of different models never runs; its methods and arguments exist."""
    [block] = [block for block in BLOCKS if block.skip_reason == OVERVIEW]
    calls = [node for node in ast.walk(ast.parse(block.source)) if isinstance(node, ast.Call)]
    named = {
        node.func.attr: node
        for node in calls
        if isinstance(node.func, ast.Attribute) and hasattr(Forecaster, node.func.attr)
    }
    assert len(named) >= 8
    for name, node in named.items():
        parameters = inspect.signature(getattr(Forecaster, name)).parameters
        assert [keyword.arg for keyword in node.keywords if keyword.arg not in parameters] == [], name


def test_every_skipped_block_has_one_of_few_reasons() -> None:
    """A further block that is skipped changes this table, so that a review sees it."""
    assert Counter(block.skip_reason for block in BLOCKS if block.skip_reason) == NUM_SKIPPED


def test_commands_are_split_as_a_shell_does() -> None:
    source = (
        "A=1 forecaster train x.csv \\\n  --horizon 2  # why\n\ncurl -d '{\n\"a\": 1}' URL && forecaster verify B\n"
    )
    commands = split_commands(source)
    assert [command.words[0] for command in commands] == ["forecaster", "curl", "forecaster"]
    assert commands[0] == (("A=1",), ("forecaster", "train", "x.csv", "--horizon", "2"))
    assert json.loads(parse_curl(commands[1].words).body or "") == {"a": 1}


def test_a_served_model_has_the_root_and_the_settings_of_its_command() -> None:
    [command] = split_commands("FORECASTER_SERVING_LEDGER=on forecaster serve drill --root there")
    assert parse_serve(command.words, command.variables) == ("drill", "there", (("ledger", "on"),))
    assert parse_serve(("forecaster", "serve")) == ServedModel()
    with pytest.raises(AssertionError, match="--host of `forecaster serve` cannot be tried"):
        parse_serve(("forecaster", "serve", "drill", "--host", "0.0.0.0"))


@pytest.mark.integration
def test_a_command_that_fails_instead_of_running_until_it_is_stopped_is_reported(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"exits with (2|-15)\n.*Error"):  # it may end before its signal
        run_until_first_line(("forecaster", "schedule", "run", "--unknown", str(tmp_path)))


@pytest.mark.usefixtures("folder")
def test_a_block_that_fails_is_reported(tmp_path: Path, session: Session) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nvalue = 1\n```\n\n```python\nassert value == 2\n```\n\n```shell\nforecaster verify none\n```\n"
    )
    first, second, third = find_blocks(page, session.run_shell)
    session.run(first)
    with pytest.raises(AssertionError):
        session.run(second)
    with pytest.raises(AssertionError, match="exits with 1"):
        session.run(third)
