"""Reads specifications from files, and names models after their data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from forecaster.errors import BadSpec
from forecaster.spec import Spec


def read_spec(path: Path) -> Spec:
    """Reads the specification in a YAML file; raises BadSpec."""
    try:
        fields: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadSpec(f"Expected a specification at {path}; it cannot be read ({error}).", where=str(path)) from error
    except yaml.YAMLError as error:
        raise BadSpec(f"Expected YAML in {path}; {' '.join(str(error).split())}.", where=str(path)) from error
    return Spec.parse(fields, where=str(path))


def derive_model_name(name: str) -> str:
    """Converts the name of a data set to a valid model name of the registry."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name).lstrip("_-")[:64] or "forecaster"
