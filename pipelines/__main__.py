"""The console script, also `python -m pipelines`: reports faults of the installation in one line, then runs the command line.

It imports the standard library only before it knows that the packages are ours.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

_DISTRIBUTION = "recurrent-forecaster"
_PACKAGES = ("forecaster", "pipelines", "serving")  # decision 34: their names are not that of the distribution
_PACKAGES_OF_CLI = ("cyclopts", "rich", "yaml")  # the extra `cli`


def main() -> None:
    """Runs `pipelines.cli.main`; exits with 2 if the extra `cli` is not installed, with 1 if a foreign package is in the way."""
    fault = find_foreign_package()
    if fault is not None:
        _exit(fault, 1)
    try:
        from pipelines.cli import main as run_command_line
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES_OF_CLI:
            raise
        advice = f"Install it with: pip install '{_DISTRIBUTION}[cli]'."
        _exit(f"Expected the package {error.name!r} for the command line; it is not installed. {advice}", 2)
    run_command_line()


def find_foreign_package() -> str | None:
    """Describes a package of another project that takes the place of one of ours; None if there is none.

    Another distribution is named `forecaster` too: installed beside this one, it overwrites files of the package.
    """
    home = Path(__file__).parent.parent
    for name in _PACKAGES:
        spec = find_spec(name)
        found = None if spec is None or spec.origin is None else Path(spec.origin).parent
        if found != home / name:
            return (
                f"Expected the package {name!r} in {home / name}, where {_DISTRIBUTION} is installed; found {found or 'none'}. "
                "Remove the other package from the path, or use an environment of its own."
            )
    for name in _PACKAGES:
        if _is_written_by_another_distribution(name):
            return (
                f"Expected the package {name!r} of {_DISTRIBUTION} alone in {home / name}; found files of the distribution "
                f"{name!r} too. Run pip uninstall {name}, then install {_DISTRIBUTION} again."
            )
    return None


def _is_written_by_another_distribution(package: str) -> bool:
    """Whether a distribution with the name of the package has installed modules of it; an editable one has not."""
    try:
        files = distribution(package).files or ()
    except PackageNotFoundError:
        return False
    return any(re.fullmatch(rf"{package}/.*\.py", path.as_posix()) for path in files)


def _exit(message: str, exit_code: int) -> NoReturn:
    print(f"forecaster: {message}", file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
