"""Tests in an environment without torch or other optional packages: files that import one of them are skipped, as a whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import pytest


def is_torch_installed() -> bool:
    return find_spec("torch") is not None


class _SkipMissingPackages:
    """The last finder of an import: a package of an extra that no other finder has found skips the test file."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        from forecaster.installation import EXTRA_OF_MODULE  # late: shapes are checked from the first import on

        if name in EXTRA_OF_MODULE or name == "utilsforecast":
            pytest.skip(f"needs {name}", allow_module_level=True)
        return None


@contextmanager
def skip_modules_that_need_them() -> Iterator[None]:
    """Skips test files while they are imported. Afterwards imports fail as usual, since tests rely on that.

    With torch installed, as in `make test`, every package is: a missing one is an error, not a reason to skip tests.
    """
    if is_torch_installed():
        yield
        return
    finder = _SkipMissingPackages()
    sys.meta_path.append(finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
