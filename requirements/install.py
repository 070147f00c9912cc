"""Installs a lock file into the environment that runs this script.

    python requirements/install.py lock.txt         the CPU build of torch if pip finds one, otherwise the GPU build
    python requirements/install.py lock.txt --gpu   the GPU build in any case

Further packages that the build requires are read from its own metadata. The script uses the standard library only, because
the environment may be empty.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

HERE = Path(__file__).parent


def main(name: str, *options: str) -> None:
    """Installs the lock file of this name, and the CUDA packages if torch requires them."""
    if "--gpu" not in options and not install_if_available(HERE / "lock-cpu.txt"):
        print("pip found no CPU build of torch: installing the GPU build, which has some gigabytes.", flush=True)
    install(HERE / name)
    cuda = HERE / "lock-cuda.txt"
    if requirement_names("torch") & locked_names(cuda):
        install(cuda)


def install_if_available(lock: Path) -> bool:
    """Installs a lock file; returns whether pip found the packages in it.

    The CPU build has a lock file of its own, because pip, given the hashes of both builds, takes the one whose hash its index
    announces in advance.
    """
    process = subprocess.run(_pip_install_command(lock), capture_output=True, text=True, check=False)
    if process.returncode and "No matching distribution" not in process.stderr:
        raise SystemExit(f"{process.stderr}\n{lock.name} was not installed; the output of pip above states the cause.")
    return process.returncode == 0


def install(lock: Path) -> None:
    """Installs exactly the packages of a lock file, each verified by its hash; installed ones are kept."""
    if subprocess.run(_pip_install_command(lock), check=False).returncode:
        raise SystemExit(f"{lock.name} was not installed; the output of pip above states the cause.")


def requirement_names(package: str) -> set[str]:
    """Names of the packages that an installed package requires, without its extras."""
    return {_normalise_name(line) for line in requires(package) or [] if "extra ==" not in line}


def locked_names(lock: Path) -> set[str]:
    """Names of the packages in a lock file."""
    return {_normalise_name(line) for line in lock.read_text().splitlines() if re.match("[a-z0-9]", line)}


def _normalise_name(requirement: str) -> str:
    stem = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[._-]+", "-", stem).lower()


def _pip_install_command(lock: Path) -> list[str]:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "--quiet"]
    return [*pip, "install", "--no-deps", "--require-hashes", "--requirement", str(lock)]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
