"""Installs a lock file into the environment that runs this script.

    python requirements/install.py lock.txt         the CPU build of torch if pip finds one, otherwise the GPU build
    python requirements/install.py lock.txt --gpu   the GPU build in any case
    python requirements/install.py lock-train.txt   the same builds, without the tools of development

Of a lock file without torch (lock-serve.txt), neither is installed. Further packages that the build requires are read from its
own metadata. pip's constraints are not applied: a lock file has one version of everything, and its hash. The script uses the
standard library only, because the environment may be empty.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

HERE = Path(__file__).parent
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)


def main(name: str, *options: str) -> None:
    """Installs the lock file of this name, and the CUDA packages if torch requires them."""
    if not OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        raise SystemExit(
            f"Expected Python 3.11 to 3.14; found {sys.version.split()[0]}. Use another one: make PYTHON=..."
        )
    has_torch = "torch" in locked_names(HERE / name)
    if has_torch and "--gpu" not in options:
        cpu = HERE / "lock-cpu.txt"
        if is_offered(read_requirement(cpu)):
            install(cpu)
        else:
            print("pip offers no CPU build of torch: installing the GPU build, which has some gigabytes.", flush=True)
    install(HERE / name)
    cuda = HERE / "lock-cuda.txt"
    if has_torch and requirement_names("torch") & locked_names(cuda):
        install(cuda)


def read_requirement(lock: Path) -> tuple[str, str, str]:
    """Returns the name, the version and the Python version of the only package of lock-cpu.txt."""
    line = next(line for line in lock.read_text().splitlines() if re.match("[a-z0-9]", line))
    match = re.match(r"(\S+)==(\S+) ; python_version == '([0-9.]+)'", line)
    assert match, f"{line!r} has another form than lock.py writes"
    return match[1], match[2], match[3]


def is_offered(requirement: tuple[str, str, str]) -> bool:
    """Whether the sources of packages that pip is configured with have this version for this Python.

    The CPU build has a lock file of its own, because pip, given the hashes of both builds, takes the one whose hash its index
    announces in advance. The list of versions is read from pip's output rather than from a failure, whose cause it states in
    words only; without a network it is empty, and the installation that follows fails with pip's own message.
    """
    name, version, python = requirement
    if python != ".".join(map(str, sys.version_info[:2])):
        return False
    command = [sys.executable, "-m", "pip", "index", "versions", name]  # it prints nothing with --quiet
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return version in re.split(r"[\s,()]+", process.stdout)


def install(lock: Path) -> None:
    """Installs exactly the packages of a lock file, each verified by its hash; installed ones are kept."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "--quiet"]
    command = [*pip, "install", "--no-deps", "--require-hashes", "--requirement", str(lock)]
    if subprocess.run(command, env=os.environ | {"PIP_CONSTRAINT": os.devnull}, check=False).returncode:
        raise SystemExit(f"{lock.name} was not installed; the output of pip above states the cause.")


def requirement_names(package: str) -> set[str]:
    """Names of the packages that an installed package requires, without its extras; none if it is not installed."""
    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return set()
    return {_normalise_name(line) for line in lines if "extra ==" not in line}


def locked_names(lock: Path) -> set[str]:
    """Names of the packages in a lock file."""
    return {_normalise_name(line) for line in lock.read_text().splitlines() if re.match("[a-z0-9]", line)}


def _normalise_name(requirement: str) -> str:
    stem = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[._-]+", "-", stem).lower()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
