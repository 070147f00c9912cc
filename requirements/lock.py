"""Updates the lock files in this folder: every direct and indirect requirement of pyproject.toml, pinned and hashed. Needs uv.

    python requirements/lock.py         the newest versions of everything
    python requirements/lock.py --keep  the locked versions, wherever they satisfy pyproject.toml

    lock.txt           everything except the CUDA packages
    lock-cpu.txt       the CPU build of torch, installed first if pip finds it
    lock-cuda.txt      the CUDA packages, for the GPU build of torch
    lock-train.txt     the part of lock.txt that every command needs, without the tools of development
    lock-serve.txt     the part of lock.txt that a server needs; it has no torch
    lock-registry.txt  the part of lock.txt that MLflow's server needs; it has no torch
    lock-docs.txt      what builds the documentation site, in an environment of its own

docs/decisions/0002-lock-and-torch-builds.md explains why there are several files.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PYPROJECT = HERE.parent / "pyproject.toml"
DISTRIBUTION = "recurrent-forecaster"

TORCH = "torch==2.13.0"
OLDEST_PYTHON = "3.11"
# The CPU build is the same version in another index, so the resolver does not find its hash. One hash, for this Python, is known.
TORCH_CPU_PYTHON = "3.11"
TORCH_CPU_HASHES = [
    "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",  # CPython 3.11, Linux x86_64
]
# On Windows statsforecast requires old versions of numba and llvmlite, which are incompatible with numpy 2.
OVERRIDES = ["numba>=0.63", "llvmlite>=0.46"]
# All but `registry`, whose server has an image of its own, and `dev`.
TRAIN_EXTRAS = (
    "train",
    "baselines",
    "tune",
    "cli",
    "track",
    "serve",
    "sources",
    "postgres",
    "schedule",
    "client",
    "explain",
)
# The build backend, which no package requires; with it the project itself installs without a network.
BUILD_REQUIREMENT = "setuptools"


@dataclass(frozen=True)
class Pin:
    """One package of a lock file.

    Attributes:
        requirement: Name, version and marker, as pip parses it.
        hashes: One "sha256:…" for each file that may be installed.
        wanted_by: Names of the packages that require this one; empty if only this project does.
    """

    requirement: str
    hashes: list[str]
    wanted_by: frozenset[str]

    @property
    def name(self) -> str:
        """The name of the package."""
        return self.requirement.split("==")[0]

    def __str__(self) -> str:
        lines = [self.requirement, *(f"    --hash={digest}" for digest in self.hashes)]
        why = ", ".join(sorted(self.wanted_by)) or "pyproject.toml"
        return " \\\n".join(lines) + f"\n    # for {why}\n"


def main(*options: str) -> None:
    """Writes the lock files."""
    locked = read_locked_versions() if "--keep" in options else ""
    everything = [add_cpu_hashes(pin) for pin in resolve(*extra_options("all"), preferences=locked)]
    cuda = [pin for pin in everything if is_cuda(pin)]
    rest = [pin for pin in everything if not is_cuda(pin)]
    versions = [pin.requirement for pin in everything]
    train = [add_cpu_hashes(pin) for pin in resolve(*extra_options(*TRAIN_EXTRAS), constraints=versions)]
    serve = resolve(*extra_options("cli", "serve", "postgres"), constraints=versions)  # postgres: for the ledger
    registry = resolve(*extra_options("registry"), constraints=versions)
    documentation = resolve_group("docs", preferences=read_locked_versions("lock-docs.txt") if locked else "")

    write_lock("lock.txt", rest, "Everything except the CUDA packages.")
    cpu = [Pin(f"{TORCH}+cpu ; python_version == '{TORCH_CPU_PYTHON}'", TORCH_CPU_HASHES, frozenset())]
    write_lock("lock-cpu.txt", cpu, "The CPU build of torch, installed first if pip finds it.")
    write_lock("lock-cuda.txt", cuda, "The further requirements of the GPU build of torch.")
    train = [pin for pin in train if not is_cuda(pin)]
    write_lock("lock-train.txt", train, "The part of lock.txt that every command needs.")
    write_lock("lock-serve.txt", serve, "The part of lock.txt that a server needs.")
    write_lock("lock-registry.txt", registry, "The part of lock.txt that MLflow's server needs.")
    write_lock("lock-docs.txt", documentation, "What builds the documentation site, in an environment of its own.")


def read_locked_versions(*names: str) -> str:
    """Returns the pins of lock files without their hashes, as uv reads earlier results of its own; none of a missing file."""
    paths = [HERE / name for name in names or ("lock.txt", "lock-cuda.txt")]
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    return "\n".join(line.removesuffix("\\").strip() for line in lines if re.match("[a-z0-9]", line))


def extra_options(*extras: str) -> list[str]:
    """Returns the options by which uv resolves these extras of the project."""
    return [option for extra in extras for option in ("--extra", extra)]


def resolve(*extras: str, constraints: list[str] | None = None, preferences: str = "") -> list[Pin]:
    """Resolves all requirements of the project with these extras, for every supported Python version and platform.

    Versions that `preferences` pins are kept, unless a requirement excludes them.
    """
    with tempfile.TemporaryDirectory() as folder:
        limits = Path(folder, "constraints.txt")
        limits.write_text("\n".join([TORCH, *(constraints or [])]))
        overrides = Path(folder, "overrides.txt")
        overrides.write_text("\n".join(OVERRIDES))
        bounds = ["--constraints", str(limits), "--overrides", str(overrides)]
        return run_uv(str(PYPROJECT), "-", *extras, *bounds, preferences=preferences, requirements=BUILD_REQUIREMENT)


def resolve_group(name: str, *, preferences: str = "") -> list[Pin]:
    """Resolves a dependency group of the project alone, as `resolve` resolves extras."""
    return run_uv("--group", f"{PYPROJECT}:{name}", preferences=preferences)


def run_uv(*arguments: str, preferences: str, requirements: str = "") -> list[Pin]:
    """Runs `uv pip compile` with these arguments, and further requirements on its standard input; returns its result."""
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("Expected uv on the PATH to update the lock files; found none. Install it (`pip install uv`).")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.txt")
        result.write_text(preferences)
        shape = ["--universal", "--generate-hashes", "--no-header", "--annotation-style", "line", "--quiet"]
        command = [
            uv,
            "pip",
            "compile",
            *arguments,
            *shape,
            "--python-version",
            OLDEST_PYTHON,
            "--output-file",
            str(result),
        ]
        process = subprocess.run(command, input=requirements, capture_output=True, text=True, check=False)
        if process.returncode:
            raise SystemExit(process.stderr)
        return parse_lock(result.read_text())


def parse_lock(text: str) -> list[Pin]:
    """Parses the output of uv: requirements, their hashes, and the packages that require them."""
    pins = []
    for block in re.split(r"\n(?=[a-z0-9])", text.strip()):
        requirement = block.splitlines()[0].removesuffix("\\").strip()
        via = re.search(r"# via (.*)", block)
        wanted_by = re.findall(r"(?:^|, )([a-z0-9][a-z0-9-]*)(?=,|$)", via[1]) if via else []
        hashes = re.findall(r"--hash=(\S+)", block)
        pins.append(Pin(requirement, hashes, frozenset(wanted_by) - {DISTRIBUTION}))
    return pins


def add_cpu_hashes(pin: Pin) -> Pin:
    """Adds the hashes of the CPU build if the package is torch."""
    if pin.name != "torch":
        return pin
    assert pin.requirement == TORCH, f"{pin.requirement} was resolved, {TORCH} is pinned"
    return Pin(pin.requirement, sorted({*pin.hashes, *TORCH_CPU_HASHES}), pin.wanted_by)


def is_cuda(pin: Pin) -> bool:
    """Whether only the GPU build of torch requires this package, directly or through another such package."""
    wanted_by_torch = all(name == "torch" or _has_cuda_name(name) for name in pin.wanted_by)
    return _has_cuda_name(pin.name) and wanted_by_torch


def _has_cuda_name(name: str) -> bool:
    return name == "triton" or name.startswith(("nvidia-", "cuda-"))


def write_lock(name: str, pins: list[Pin], purpose: str) -> None:
    """Replaces one lock file."""
    header = f"# {purpose} Written by lock.py (`make lock`), installed by install.py.\n\n"
    (HERE / name).write_text(header + "".join(map(str, pins)))
    print(f"{name}: {len(pins)} packages")


if __name__ == "__main__":
    main(*sys.argv[1:])
