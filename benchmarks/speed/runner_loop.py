"""A runner's side of the conversation: one process, in its own environment, that answers JSON lines on stdin.

    {"do": "prepare", "case": {...}, "entrant": NAME}   makes it ready and runs it once to warm up
    {"do": "run"}                                       one repetition of what was prepared last under that entrant
    {"do": "leave"}

What answers take is measured here, so that the talk is not in it. Needs numpy alone.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO

from cases import SHORT, Case
from timing import Taken, per_call, per_step, taken


class NotAvailable(Exception):
    """An entrant that does not take part in a case; the message says why."""


@dataclass(frozen=True)
class Ready:
    """What an entrant does in a case.

    Attributes:
        act: Does it once; of a training, with so many optimiser steps.
        facts: What a reader should know: `parameters`, `computes`.
    """

    act: Callable[[int], object]
    facts: Mapping[str, Any] = field(default_factory=dict)


Prepare = Callable[[Case], Ready]


def serve(entrants: Mapping[str, Prepare], packages: tuple[str, ...]) -> None:
    """Answers until it is told to leave; `--once CASE ENTRANT` in the arguments does one training and no more."""
    if sys.argv[1:2] == ["--once"]:
        case = Case(**json.loads(sys.argv[2]))
        entrants[sys.argv[3]](case).act(case.steps)
        return
    answers = _own_stdout()
    _say(answers, {"versions": {name: _version(name) for name in packages}})
    prepared: dict[str, tuple[Case, Ready]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            match asked["do"]:
                case "prepare":
                    case = Case(**asked["case"])
                    ready = entrants[asked["entrant"]](case)
                    _act(replace(case, steps=min(case.steps, 2 * SHORT)), ready)
                    prepared[asked["entrant"]] = (case, ready)
                    _say(answers, {"facts": dict(ready.facts)})
                case "run":
                    _say(answers, _act(*prepared[asked["entrant"]])._asdict())
                case "forget":
                    prepared.clear()
                    _say(answers, {})
                case "leave":
                    return
        except NotAvailable as reason:
            _say(answers, {"not_available": str(reason)})
        except Exception as error:  # of any library: the others go on without it
            traceback.print_exc()
            _say(answers, {"failed": f"{type(error).__name__}: {error}"[:500]})


def _act(case: Case, ready: Ready) -> Taken:
    """What a repetition took: all steps (classical), one step (large, members), or one call (the others)."""
    match case.group:
        case "classical" | "process":
            return taken(lambda: ready.act(case.steps))
        case "large" | "members":
            return per_step(ready.act, few=SHORT, many=case.steps)
        case _:
            return per_call(lambda: ready.act(0))


def _own_stdout() -> TextIO:
    """The real stdout; what libraries print from here on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, what: Mapping[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
