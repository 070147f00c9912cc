"""Every optional package has an extra that a message can name."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from forecaster.installation import EXTRA_OF_MODULE

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("forecaster", "pipelines", "serving")
DISTRIBUTIONS = {
    "pytorch_lightning": "pytorch-lightning",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "uvicorn": "bentoml",
}
# Modules that a package brings which is imported before, or without which something else is done.
BROUGHT_BY = {
    "IPython": None,
    "PIL": "matplotlib",
    "certifi": None,
    "click": "bentoml",
    "jaxtyping": None,
    "lightning_fabric": "pytorch_lightning",
    "packaging": "onnxruntime",
    "prometheus_client": "bentoml",
    "pydantic_core": "pydantic",
}
IMPORT = re.compile(r"^\s*(?:import|from) ([A-Za-z_]\w*)", re.MULTILINE)
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def test_the_extra_of_a_module_requires_its_distribution() -> None:
    for module, extra in EXTRA_OF_MODULE.items():
        requirements = PROJECT["optional-dependencies"][extra]
        names = {Requirement(line).name for line in requirements}
        assert DISTRIBUTIONS.get(module, module) in names, f"{module} of the extra {extra}"


def test_every_module_that_is_imported_is_required_or_has_an_extra() -> None:
    required = {Requirement(line).name for line in PROJECT["dependencies"]}
    imported: set[str] = set()
    for package in PACKAGES:
        for path in (CHECKOUT / package).rglob("*.py"):
            code = re.sub(r'("""|\'\'\').*?\1', "", path.read_text(), flags=re.DOTALL)
            imported.update(IMPORT.findall(code))
    assert imported - sys.stdlib_module_names - required - {*PACKAGES} - {*EXTRA_OF_MODULE} == {*BROUGHT_BY}
