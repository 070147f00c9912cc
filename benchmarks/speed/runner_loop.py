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

from cases import SHORT_STEPS, SpeedCase
from timing import Timing, time_once, time_per_call, time_per_step


class EntrantNotAvailable(Exception):
    """An entrant that does not take part in a case; the message says why."""


@dataclass(frozen=True)
class PreparedEntrant:
    """What an entrant does in a case.

    Attributes:
        act: Does it once; of a training, with so many optimiser steps.
        facts: What a reader should know: `parameters`, `computes`.
    """

    action: Callable[[int], object]
    facts: Mapping[str, Any] = field(default_factory=dict)


PrepareEntrant = Callable[[SpeedCase], PreparedEntrant]


def serve_requests(entrants: Mapping[str, PrepareEntrant], packages: tuple[str, ...]) -> None:
    """Answers until it is told to leave; `--once CASE ENTRANT` in the arguments does one training and no more."""
    if sys.argv[1:2] == ["--once"]:
        case = SpeedCase(**json.loads(sys.argv[2]))
        entrants[sys.argv[3]](case).action(case.steps)
        return
    answers = _reserve_stdout()
    _send_reply(answers, {"versions": {name: _package_version(name) for name in packages}})
    prepared: dict[str, tuple[SpeedCase, PreparedEntrant]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            match asked["do"]:
                case "prepare":
                    case = SpeedCase(**asked["case"])
                    ready = entrants[asked["entrant"]](case)
                    _time_repetition(replace(case, steps=min(case.steps, 2 * SHORT_STEPS)), ready)
                    prepared[asked["entrant"]] = (case, ready)
                    _send_reply(answers, {"facts": dict(ready.facts)})
                case "run":
                    _send_reply(answers, _time_repetition(*prepared[asked["entrant"]])._asdict())
                case "forget":
                    prepared.clear()
                    _send_reply(answers, {})
                case "leave":
                    return
        except EntrantNotAvailable as reason:
            _send_reply(answers, {"not_available": str(reason)})
        except Exception as error:  # of any library: the others go on without it
            traceback.print_exc()
            _send_reply(answers, {"failed": f"{type(error).__name__}: {error}"[:500]})


def _time_repetition(case: SpeedCase, prepared: PreparedEntrant) -> Timing:
    """What a repetition took: all steps (classical), one step (large, members), or one call (the others)."""
    match case.group:
        case "classical" | "process":
            return time_once(lambda: prepared.action(case.steps))
        case "large" | "members":
            return time_per_step(prepared.action, few=SHORT_STEPS, many=case.steps)
        case _:
            return time_per_call(lambda: prepared.action(0))


def _reserve_stdout() -> TextIO:
    """The real stdout; what libraries print from here on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _send_reply(output: TextIO, reply: Mapping[str, Any]) -> None:
    output.write(json.dumps(reply) + "\n")
    output.flush()


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
