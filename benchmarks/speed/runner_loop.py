"""Message loop of a runner: a process in its own environment that replies to JSON lines on stdin.

    {"do": "prepare", "case": {...}, "entrant": NAME}   prepares an entrant and runs it once as a warm-up
    {"do": "run", "entrant": NAME}                      runs one repetition of the prepared entrant
    {"do": "forget"}                                    drops all prepared entrants
    {"do": "leave"}                                     ends the loop

Repetitions are timed here, so that messages are not included. Needs only numpy.
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
    """Raised if an entrant does not take part in a case; the message is the reason."""


@dataclass(frozen=True)
class PreparedEntrant:
    """An entrant, ready for a case.

    Attributes:
        action: Runs it once; for a training, with the given number of optimiser steps.
        facts: Facts for the report: `parameters`, `computes`.
    """

    action: Callable[[int], object]
    facts: Mapping[str, Any] = field(default_factory=dict)


PrepareEntrant = Callable[[SpeedCase], PreparedEntrant]


def serve_requests(entrants: Mapping[str, PrepareEntrant], packages: tuple[str, ...]) -> None:
    """Replies to requests until `leave`; with the arguments `--once CASE ENTRANT` it runs one training instead."""
    if sys.argv[1:2] == ["--once"]:
        case = SpeedCase(**json.loads(sys.argv[2]))
        entrants[sys.argv[3]](case).action(case.steps)
        return
    output = _reserve_stdout()
    _send_reply(output, {"versions": {name: _package_version(name) for name in packages}})
    prepared: dict[str, tuple[SpeedCase, PreparedEntrant]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            match request["do"]:
                case "prepare":
                    case = SpeedCase(**request["case"])
                    ready = entrants[request["entrant"]](case)
                    _time_repetition(replace(case, steps=min(case.steps, 2 * SHORT_STEPS)), ready)
                    prepared[request["entrant"]] = (case, ready)
                    _send_reply(output, {"facts": dict(ready.facts)})
                case "run":
                    _send_reply(output, _time_repetition(*prepared[request["entrant"]])._asdict())
                case "forget":
                    prepared.clear()
                    _send_reply(output, {})
                case "leave":
                    return
        except EntrantNotAvailable as reason:
            _send_reply(output, {"not_available": str(reason)})
        except Exception as error:  # any error of a library; the other entrants continue
            traceback.print_exc()
            _send_reply(output, {"failed": f"{type(error).__name__}: {error}"[:500]})


def _time_repetition(case: SpeedCase, prepared: PreparedEntrant) -> Timing:
    """Times a repetition: all steps (classical), one step (large, members), or one call (the others)."""
    match case.group:
        case "classical" | "process":
            return time_once(lambda: prepared.action(case.steps))
        case "large" | "members":
            return time_per_step(prepared.action, few=SHORT_STEPS, many=case.steps)
        case _:
            return time_per_call(lambda: prepared.action(0))


def _reserve_stdout() -> TextIO:
    """Returns the real stdout; everything that libraries print goes to stderr from then on."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return output


def _send_reply(output: TextIO, reply: Mapping[str, Any]) -> None:
    output.write(json.dumps(reply) + "\n")
    output.flush()


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
