"""Packages that some tests need and no lock file has. Without them a test is skipped, with the command that installs them."""

from __future__ import annotations

from typing import Any

import pytest

REQUIREMENTS = {
    "ipykernel": "nbclient ipykernel",
    "kubernetes_validate": "kubernetes-validate",
    "mcp": "'mcp>=2.3'",
    "moto": "'moto[server]' s3fs",
    "nbclient": "nbclient ipykernel",
    "prefect": "'prefect>=3.6.28' 'fastapi<0.155'",
    "pyspark": "pyspark",
    "ray": "'ray>=2.50'",
    "s3fs": "'moto[server]' s3fs",
}
"""What pip has to install, by the package that a test imports; CONTRIBUTING.md ("Check") lists the tests."""


def import_optional(module: str, *, also: str = "") -> Any:
    """Imports a module of one of these packages, or skips the test.

    Args:
        module: The module.
        also: What else has to be there, which pip does not install.
    """
    package = module.partition(".")[0]
    needed = f"{package}{f' and {also}' if also else ''}"
    reason = f"needs {needed}; no lock file has it: .venv/bin/pip install {REQUIREMENTS[package]}"
    return pytest.importorskip(module, reason=reason)
