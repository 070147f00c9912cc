"""The console script, also `python -m pipelines`: reports faults of the installation in one line, then runs the command line."""

from __future__ import annotations

import sys

from pipelines.installation import find_foreign_package

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
        _exit(
            f"Expected the package {error.name!r} for the command line; it is not installed. Install it with: "
            "pip install 'recurrent-forecaster[cli]'.",
            2,
        )
    run_command_line()


def _exit(message: str, exit_code: int) -> None:
    print(f"forecaster: {message}", file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
