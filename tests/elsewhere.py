"""Runs steps as another machine would: function, step and result are pickled, and what was submitted last finishes first."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def run_elsewhere(function: Callable[[Any], Any], steps: Sequence[Any], /) -> Iterator[Any]:
    packed = [pickle.dumps((function, step)) for step in steps]
    for content in reversed(packed):
        unpacked_function, step = pickle.loads(content)
        yield pickle.loads(pickle.dumps(unpacked_function(step)))
