"""How the independent steps of a long job are run: in processes of this machine, or by an engine that a caller brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

_StepT = TypeVar("_StepT")
_ResultT = TypeVar("_ResultT")


@runtime_checkable
class RunSteps(Protocol):
    """Calls a function with each step, in any order and in any process, and yields the results as they finish.

    Function and steps can be pickled. A step whose process died may be called again, so it gives the same result each time.
    """

    def __call__(self, function: Callable[[_StepT], _ResultT], steps: Sequence[_StepT], /) -> Iterator[_ResultT]:
        """Yields the results, each as soon as it is there."""
        ...
