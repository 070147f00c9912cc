"""Installs a lock and this project into the environment that runs this file, and checks that the set is complete.

    python requirements/install.py lock.txt --editable

Which build of torch came (CPU or GPU) is for pip and the machine's pip configuration to decide; what that build asks for
besides is then read from its own metadata. Nothing here but the standard library: the environment may be empty.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

HERE = Path(__file__).parent


def main(lock: str, *options: str) -> None:
    install(HERE / lock)
    cuda = HERE / "lock-cuda.txt"
    if names_wanted_by("torch") & names_in(cuda):
        install(cuda)
    pip("install", "--no-deps", "--no-build-isolation", *options, str(HERE.parent))
    pip("check")


def install(lock: Path) -> None:
    """Installs exactly what a lock lists, each file by its hash."""
    pip("install", "--no-deps", "--require-hashes", "--requirement", str(lock))


def names_wanted_by(package: str) -> set[str]:
    """Names of what an installed package requires, its extras apart."""
    return {_name(line) for line in requires(package) or [] if "extra ==" not in line}


def names_in(lock: Path) -> set[str]:
    """Names of what a lock lists."""
    return {_name(line) for line in lock.read_text().splitlines() if re.match("[a-z0-9]", line)}


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"pip {arguments[0]} failed; what it says stands above.")


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main(*sys.argv[1:])
