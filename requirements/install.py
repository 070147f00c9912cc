"""Installs a lock into the environment that runs this file.

    python requirements/install.py lock.txt         the CPU build of torch where pip is offered it, else the GPU build
    python requirements/install.py lock.txt --gpu   the GPU build in any case

What the build asks for besides is read from its own metadata. Nothing here but the standard library: the environment
may be empty.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

HERE = Path(__file__).parent


def main(name: str, *options: str) -> None:
    """Installs the lock of this name, and the CUDA packages where torch asks for them."""
    if "--gpu" not in options and not install_if_available(HERE / "lock-cpu.txt"):
        print("pip is offered no CPU build of torch here: the GPU build comes, some gigabytes of it.", flush=True)
    install(HERE / name)
    cuda = HERE / "lock-cuda.txt"
    if requirement_names("torch") & locked_names(cuda):
        install(cuda)


def install_if_available(lock: Path) -> bool:
    """Installs a lock and says whether pip found what it lists.

    A lock of its own, because pip, given hashes of both builds, takes the one whose hash its index tells in advance.
    """
    answer = subprocess.run(_pip_install_command(lock), capture_output=True, text=True, check=False)
    if answer.returncode and "No matching distribution" not in answer.stderr:
        raise SystemExit(f"{answer.stderr}\n{lock.name} was not installed; pip says above what stood in the way.")
    return answer.returncode == 0


def install(lock: Path) -> None:
    """Installs exactly what a lock lists, each file by its hash; what is there already stays."""
    if subprocess.run(_pip_install_command(lock), check=False).returncode:
        raise SystemExit(f"{lock.name} was not installed; pip says above what stood in the way.")


def requirement_names(package: str) -> set[str]:
    """Names of what an installed package requires, its extras apart."""
    return {_normalise_name(line) for line in requires(package) or [] if "extra ==" not in line}


def locked_names(lock: Path) -> set[str]:
    """Names of what a lock lists."""
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
