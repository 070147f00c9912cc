"""The records of a source: a file to read, and the table that was read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import pandas as pd

from forecaster.errors import InputError


class SourceFile(NamedTuple):
    """A file on this machine or in a store.

    Attributes:
        name: The file name.
        location: The path or URL, for messages.
        open_content: Returns the path, or a new stream of the bytes on every call.
    """

    name: str
    location: str
    open_content: Callable[[], Path | IO[bytes]]

    @property
    def is_gzip(self) -> bool:
        """Whether the name says that the file is compressed."""
        return self.name.lower().endswith(".gz")


class SourceTable(NamedTuple):
    """The rows of a source, and messages about what was repaired, such as corrections and skipped files."""

    frame: pd.DataFrame
    repairs: tuple[str, ...]


def unreadable(file: SourceFile, found: str, advice: str) -> InputError:
    """Returns the error for a file that is not a table: what was found, and what to do."""
    return InputError(f"Expected a readable table in {file.location}; {found}. {advice}.", where=file.location)
