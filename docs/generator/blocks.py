"""The blocks of the documentation, found by Sybil: programs in Python, and commands of the shell, which run in this process.

A block that cannot run has a comment before it: `<!-- skip: next "needs Docker" -->`. Its commands are parsed nevertheless.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import httpx
from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from docs.generator.site import CHECKOUT
from pipelines.cli import main

SERVICE = "http://127.0.0.1:3000"
# Commands that train, that need a registry or that draw an atlas take seconds to minutes, as does unrolled training: their
# blocks run at night.
SLOW_WORDS = {
    "--html",
    "--move-root",
    "train",
    "retrain",
    "tune",
    "pretrain",
    "register",
    "promote",
    "rollback",
    "audit",
    "compare",
    "package",
}
SLOW_CALLS = ("evaluation.backtest", "fit_sequences", ".trace(", ".backup(", "for seed in", '"unroll"')
PAGE_FOLDERS = (
    "coming-from",
    "concepts",
    "guides",
    "operate",
    "skill",
)  # folders of docs/ whose pages are written by hand
CHAMPION = "hospital"  # the registered model that the pages name
_PYTHON, _SHELL = "python", "shell"


class Command(NamedTuple):
    """One command of the shell: the variables before it, and its words."""

    variables: tuple[str, ...]
    words: tuple[str, ...]


class Block(NamedTuple):
    """A block that can be run.

    Attributes:
        example: The block, as Sybil runs it.
        language: `python` or `shell`.
        skip_reason: Why it is never run; empty for a block that is.
    """

    example: Example
    language: str
    skip_reason: str

    @property
    def name(self) -> str:
        """The page and the line."""
        return f"{Path(self.example.path).relative_to(CHECKOUT)}:{self.example.line}"

    @property
    def source(self) -> str:
        """The text of the block."""
        return str(self.example.parsed)

    @property
    def is_slow(self) -> bool:
        """Whether the block takes seconds even with trainings of a few steps, or needs a registry."""
        if self.language == _PYTHON:
            return any(call in self.source for call in SLOW_CALLS)
        return self.names_champion or any(
            SLOW_WORDS & set(words) or (words[1] == "serve" and parse_serve(words).name) for words in self._list_words()
        )

    @property
    def names_champion(self) -> bool:
        """Whether a command names the registered model of the pages."""
        return any(re.fullmatch(rf"{CHAMPION}(@\w+)?", word) for words in self._list_words() for word in words)

    def _list_words(self) -> list[tuple[str, ...]]:
        commands = split_commands(self.source) if self.language == _SHELL else []
        return [command.words for command in commands if command.words[0] == "forecaster"]


def list_pages() -> list[Path]:
    """Returns the pages whose blocks are run. Records of decisions and experiments keep the commands of their time."""
    docs = CHECKOUT / "docs"
    pages = [
        *sorted(docs.glob("*.md")),
        *(page for folder in PAGE_FOLDERS for page in sorted((docs / folder).glob("*.md"))),
    ]
    return [
        CHECKOUT / "README.md",
        CHECKOUT / "CONTRIBUTING.md",
        *(page for page in pages if page.name != "experiments.md"),
    ]


def find_blocks(page: Path, run_shell: Callable[[Example], None] | None = None) -> list[Block]:
    """Returns the blocks of a page in their order; `run_shell` runs a block of commands."""
    skips = SkipParser()
    document = Document.parse(str(page), skips, PythonCodeBlockParser(), _ShellParser(run_shell))
    blocks, reason = [], ""
    for example in document:
        if example.region.evaluator is skips.skipper:
            action, argument = example.parsed
            assert action == "next", f"{page}:{example.line}: only `skip: next` is used"
            reason = (argument or "").strip('"')
            assert reason, f"{page}:{example.line}: a block is skipped for a reason"
            continue
        language = _PYTHON if isinstance(example.region.evaluator, PythonEvaluator) else _SHELL
        blocks.append(Block(example, language, reason))
        reason = ""
    return blocks


class _ShellParser:
    """Finds the blocks marked as `shell`."""

    def __init__(self, run_shell: Callable[[Example], None] | None) -> None:
        self._lexer = RawFencedCodeBlockLexer(re.compile(rf"{_SHELL}\n"))
        self._run_shell = run_shell or (lambda _: None)

    def __call__(self, document: Document) -> Iterator[Region]:
        for region in self._lexer(document):
            yield Region(region.start, region.end, region.lexemes["source"], self._run_shell)


def split_commands(source: str) -> list[Command]:
    """Splits a block into commands: continued lines are joined, comments are left out, `&&` separates."""
    commands: list[Command] = []
    pending = ""
    for line in source.splitlines():
        pending += line + "\n"
        try:
            words = shlex.split(pending.replace("\\\n", " "), comments=True)
        except ValueError:  # a quotation continues on the next line
            continue
        if line.endswith("\\"):
            continue
        pending = ""
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            commands.append(_make_command(words[:end]))
            words = words[end + 1 :]
    assert not pending.strip(), f"an unfinished command: {pending}"
    return commands


def _make_command(words: list[str]) -> Command:
    start = next((index for index, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return Command(tuple(words[:start]), tuple(words[start:] or ("",)))


class ServedModel(NamedTuple):
    """What a `forecaster serve` command serves.

    Attributes:
        name: The registered model; None for the pretrained network.
        root: The root folder; None for the default.
        settings: The settings FORECASTER_SERVING_* before the command, by their names in small letters.
    """

    name: str | None = None
    root: str | None = None
    settings: tuple[tuple[str, str], ...] = ()


def parse_serve(words: tuple[str, ...], variables: tuple[str, ...] = ()) -> ServedModel:
    """Returns what a `serve` command serves, of the options that the documentation uses."""
    name, root = None, None
    rest = iter(words[2:])
    for word in rest:
        if word == "--root":
            root = next(rest)
        else:
            assert not word.startswith("-"), f"{word} of `forecaster serve` cannot be tried; skip the block"
            name = word
    prefix = "FORECASTER_SERVING_"
    assert all(variable.startswith(prefix) for variable in variables), f"expected settings; found {variables}"
    settings = [variable.removeprefix(prefix).partition("=") for variable in variables]
    return ServedModel(name, root, tuple((setting.lower(), value) for setting, _, value in settings))


class CurlRequest(NamedTuple):
    """A request that a `curl` command sends."""

    method: str
    url: str
    body: str | None
    headers: dict[str, str]


def parse_curl(words: tuple[str, ...]) -> CurlRequest:
    """Returns the request of a `curl` command, of the options that the documentation uses."""
    url, body, headers = "", None, {}
    rest = iter(words[1:])
    for word in rest:
        if word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(rest)
        elif word != "-s":
            url = word
    return CurlRequest("GET" if body is None else "POST", url, body, headers)


@dataclass
class Session:
    """What the blocks of one page share: the folder that they run in, a service, and what earlier commands returned.

    Attributes:
        start_service: Starts a service at the first call, and returns its address: of what is given, or else of the pretrained
            network. Later calls return that address.
        start_service_with_covariates: The same for requests with covariates: the pretrained network reads none, so a small daily
            model with `promo` is served beside it.
        bundle: The path that stands behind the word BUNDLE: that of the last training, or else the folder BUNDLE.
        state: The state in the last response of the service.
    """

    start_service: Callable[..., str]
    start_service_with_covariates: Callable[[], str]
    bundle: str = "BUNDLE"
    state: str = ""
    outputs: list[str] = field(default_factory=list)

    def run(self, block: Block) -> None:
        """Runs a block; raises what it raises."""
        if block.language == _PYTHON and SERVICE in block.source:
            source = block.example.parsed
            moved = type(source)(source.replace(SERVICE, self.start_service()), source.offset, source.line_offset)
            block.example.parsed = moved
        block.example.evaluate()

    def run_shell(self, example: Example) -> None:
        """Runs the commands of a block."""
        for command in split_commands(str(example.parsed)):
            self._run_command(command)

    def _run_command(self, command: Command) -> None:
        words = command.words
        if words[0] == "curl":
            self._request(parse_curl(words))
        elif words[:2] == ("forecaster", "serve"):
            self.start_service(parse_serve(words, command.variables))
        elif words[:3] == ("forecaster", "schedule", "run"):
            self.outputs.append(run_until_first_line(words))
        else:
            assert words[0] == "forecaster", f"{words[0]} cannot be run in a test; skip the block, with the reason"
            self._run_forecaster([self.bundle if word == "BUNDLE" else word for word in words[1:]])

    def _run_forecaster(self, arguments: list[str]) -> None:
        output, code = StringIO(), None
        try:
            with redirect_stdout(output):
                main(arguments)
        except SystemExit as error:
            code = error.code
        assert not code, f"forecaster {shlex.join(arguments)} exits with {code}\n{output.getvalue()}"
        self.outputs.append(output.getvalue())
        trained = re.search(r"(?m)^bundle +(\S+)$", output.getvalue())
        if trained:
            self.bundle = trained[1]

    def _request(self, request: CurlRequest) -> None:
        """Sends a request to the service; a state that the page shortens is that of the last response."""
        body = request.body and re.sub(r'(?<="state": ")[^"]*\.\.\.(?=")', self.state, request.body)
        has_covariates = '"covariates"' in (request.body or "")
        start = self.start_service_with_covariates if has_covariates else self.start_service
        url = request.url.replace(SERVICE, start())
        response = httpx.request(request.method, url, content=body, headers=request.headers, timeout=60)
        assert response.status_code == 200, response.text
        state = re.search(r'"state": ?"([^"]+)"', response.text)
        self.state = state[1] if state else self.state
        self.outputs.append(json.dumps(response.json(), indent=1))


def run_until_first_line(words: tuple[str, ...]) -> str:
    """Runs a command that runs until it is stopped as a process, stops it after its first line, and returns that line."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, "-m", "pipelines", *words[1:]]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, f"{shlex.join(words)} exits with {process.returncode}\n{line}{rest}"
    return line
