"""The reference of the command line: every command, option, default and exit code, from the cyclopts application."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from inspect import Parameter as FunctionParameter
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from cyclopts import App

from docs.generator.markdown import (
    finish_sentence,
    join_lines,
    render_page,
    render_table,
    take_first_paragraph,
    to_anchor,
)
from pipelines import cli

_TYPE_NAMES: dict[Any, str] = {str: "text", int: "integer", float: "number", Path: "path", bool: "flag"}


class OptionGroup(NamedTuple):
    """Options that several commands share, which are the fields of one class."""

    name: str
    summary: str

    @property
    def title(self) -> str:
        """The name of the class as words: `Data options`."""
        return re.sub(r"(?<!^)(?=[A-Z])", " ", self.name).capitalize()


class Option(NamedTuple):
    """An argument or an option of a command.

    Attributes:
        names: The names as typed; an argument by position has one in capitals.
        kind: What it takes, such as `integer`.
        default: The default as inline code; empty if there is none.
        help: What it does.
        environment: The environment variables that are read if it is not given.
        group: The shared options to which it belongs; None if it belongs to this command alone.
    """

    names: tuple[str, ...]
    kind: str
    default: str
    help: str
    environment: tuple[str, ...]
    group: OptionGroup | None


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        path: The words that are typed after `forecaster`.
        summary: What it does, in its docstring's first paragraph.
        details: The paragraphs between the first and the description of the parameters.
        options: Arguments and options, in their order.
    """

    path: str
    summary: str
    details: str
    options: tuple[Option, ...]

    @property
    def groups(self) -> tuple[OptionGroup, ...]:
        """The shared options that it takes, in the order of their first option."""
        return tuple(dict.fromkeys(option.group for option in self.options if option.group))


def list_commands(app: App = cli.app) -> list[Command]:
    """Returns all commands, those of a group (`schedule status`) one by one."""
    return list(_walk(app, ()))


def _walk(app: App, path: tuple[str, ...]) -> Iterator[Command]:
    for name in app:
        if name.startswith("-"):
            continue
        child = app[name]
        if any(not nested.startswith("-") for nested in child):
            yield from _walk(child, (*path, name))
        else:
            yield _describe_command(child, " ".join((*path, name)))


def _describe_command(app: App, path: str) -> Command:
    docstring = inspect.cleandoc(getattr(app.default_command, "__doc__", None) or "")
    paragraphs = re.split(r"\n+(?:Parameters|Returns|Raises)\n-+\n", docstring)[0].split("\n\n")
    details = "\n\n".join(join_lines(paragraph) for paragraph in paragraphs[1:])
    return Command(path, join_lines(paragraphs[0]), details, tuple(_list_options(app)))


def _list_options(app: App) -> Iterator[Option]:
    group: OptionGroup | None = None
    for argument in app.assemble_argument_collection(parse_docstring=True):
        if argument.names == ("*",):
            group = OptionGroup(argument.hint.__name__, finish_sentence(take_first_paragraph(argument.hint.__doc__)))
            continue
        info, parameter = argument.field_info, argument.parameter
        by_position = argument.index is not None
        repeated = info.kind is FunctionParameter.VAR_POSITIONAL
        label = argument.names[0].removeprefix("--").replace("-", "_").upper()
        yield Option(
            names=(f"{label}..." if repeated else label,) if by_position else tuple(argument.names),
            kind=describe_type(argument.hint),
            default=_format_default(info.default),
            help=join_lines(parameter.help or ""),
            environment=tuple(parameter.env_var or ()),
            group=group if argument.keys else None,
        )


def _format_default(value: Any) -> str:
    if value in (FunctionParameter.empty, None, False, ()):
        return ""
    return ", ".join(f"`{item}`" for item in (value if isinstance(value, tuple) else (value,)))


def describe_type(hint: Any) -> str:
    """Describes what an option takes: the choices of a literal, or a word such as `integer`."""
    origin = get_origin(hint)
    members = [member for member in get_args(hint) if member not in (type(None), ...)]
    if origin is Literal:
        return ", ".join(f"`{member}`" for member in members)
    if origin in (tuple, list):
        return f"{describe_type(members[0])}; several"
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(member) for member in members)
    return _TYPE_NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def build_page() -> str:
    """Returns the page."""
    commands = list_commands()
    shared = {option.group for command in commands for option in command.options if option.group}
    parts = [
        "Every command, its arguments, its options and its defaults. [Command line](../cli.md) is the guide. "
        "`forecaster COMMAND --help` prints the same descriptions.",
        render_table(
            ("command", "what it does"),
            (
                (f"[`{command.path}`](#{to_anchor(_title(command))})", _take_sentence(command.summary))
                for command in commands
            ),
        ),
        "## Exit codes",
        render_table(("code", "meaning"), ((f"`{code}`", meaning) for code, meaning in list_exit_codes().items())),
        *(part for command in commands for part in _render_command(command)),
        "## Shared options",
        "Several commands take the same groups of options.",
        *(part for group in sorted(shared) for part in _render_group(group, commands)),
    ]
    return render_page("Command line reference", *parts)


def list_exit_codes() -> dict[int, str]:
    """Returns the exit codes and their meaning, from the docstring of the command line."""
    sentence = re.search(r"Exit codes: ([^.]+)\.", cli.__doc__ or "")
    assert sentence is not None
    pairs = re.findall(r"(\d+) ([^,]+)", join_lines(sentence[1]))
    return {int(code): meaning for code, meaning in pairs}


def _title(command: Command) -> str:
    return f"forecaster {command.path}"


def _take_sentence(text: str) -> str:
    return re.split(r"(?<=[.])\s(?=[A-Z])", text)[0]


def _render_command(command: Command) -> Iterator[str]:
    arguments = [option.names[0] for option in command.options if not option.names[0].startswith("-")]
    yield f"## {_title(command)}"
    yield command.summary
    yield command.details
    yield "```text\n" + " ".join(["forecaster", command.path, *arguments, "[OPTIONS]"]) + "\n```"
    yield _render_options(option for option in command.options if not option.group)
    if command.groups:
        links = ", ".join(f"[{group.title.lower()}](#{to_anchor(group.title)})" for group in command.groups)
        yield f"Also: {links}."


def _render_options(options: Iterator[Option]) -> str:
    rows = (
        (
            ", ".join(f"`{name}`" for name in option.names),
            option.kind,
            option.default,
            option.help + "".join(f" Environment: `{name}`." for name in option.environment),
        )
        for option in options
    )
    return render_table(("option", "takes", "default", "meaning"), rows)


def _render_group(group: OptionGroup, commands: list[Command]) -> Iterator[str]:
    users = [command for command in commands if group in command.groups]
    options = {option.names: option for command in users for option in command.options if option.group == group}
    yield f"### {group.title}"
    yield group.summary
    yield "Commands: " + ", ".join(f"[`{command.path}`](#{to_anchor(_title(command))})" for command in users) + "."
    yield _render_options(iter(options.values()))
