"""Builds the compiled kernel into a wheel that serves every version of Python; pyproject.toml holds everything else.

The kernel (csrc/steps.c) is called through ctypes and does not use Python's headers, so a wheel with it is tagged with the
platform only: `py3-none-linux_x86_64`, and manylinux after requirements/build_wheels.py. Environment:

    FORECASTER_WITHOUT_KERNEL=1   builds the pure wheel, py3-none-any
    FORECASTER_REQUIRE_KERNEL=1   a kernel that does not compile is an error; by default the build goes on without it
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

FOLDER = Path("forecaster/model/recurrence/csrc")
KERNEL = Extension(
    "forecaster.model.recurrence._steps",
    sources=[str(FOLDER / "steps.c")],
    depends=[str(FOLDER / name) for name in ("pasts.h", "rolls.h", "stacks.h", "steps.h", "tiles.h")],
    extra_compile_args=["-O3", "-Wno-maybe-uninitialized"],  # a tile reads only the sums that were written
    optional=os.environ.get("FORECASTER_REQUIRE_KERNEL") != "1",
    py_limited_api=True,  # for the name of the file, which then has no version of Python
)


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3, of this platform if it has the kernel."""

    def get_tag(self) -> tuple[str, str, str]:
        """Returns the tag without the version of the Python that builds it."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[] if os.environ.get("FORECASTER_WITHOUT_KERNEL") == "1" else [KERNEL],
    cmdclass={"bdist_wheel": PlatformWheel},
)
