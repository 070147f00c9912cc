"""Faults of an installation that are reported before anything of it is imported; uses the standard library only."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("forecaster", "pipelines", "serving")  # decision 34: their names are not those of the distribution
_DISTRIBUTION = "recurrent-forecaster"


def find_foreign_package() -> str | None:
    """Describes a package of another project that is imported, or was installed, in place of one of ours; None if there is none.

    `forecaster` is also a distribution of somebody else: installed beside this one it overwrites files of the package.
    """
    home = Path(__file__).parent.parent
    for name in _PACKAGES:
        spec = find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).parent
        if origin != home / name:
            found = "no package" if origin is None else str(origin)
            return (
                f"Expected the package {name!r} of {_DISTRIBUTION} in {home / name}; found {found}. Remove the other one from "
                "the path, or use an environment of its own."
            )
    for name in _PACKAGES:
        try:
            other = distribution(name)
        except PackageNotFoundError:
            continue
        if _contains_package(other, name):
            return (
                f"Expected the package {name!r} of {_DISTRIBUTION} only; found also the distribution {name!r} "
                f"{other.version}, which writes to the same folder. Run pip uninstall {name}, then install {_DISTRIBUTION} again."
            )
    return None


def _contains_package(other: Distribution, name: str) -> bool:
    return any(re.fullmatch(rf"{name}(/.*)?\.py", str(path)) for path in other.files or ())
