"""Specifications in files, and what goes into one from data or from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from forecaster.errors import BadSpec, InputError
from forecaster.spec import Spec


def read_spec(path: Path) -> Spec:
    """The specification in a YAML file; raises BadSpec."""
    try:
        fields: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise BadSpec(f"Expected a specification at {path}; it cannot be read ({error}).", where=str(path)) from error
    except yaml.YAMLError as error:
        raise BadSpec(f"Expected YAML in {path}; {' '.join(str(error).split())}.", where=str(path)) from error
    return Spec.parse(fields, where=str(path))


def validate_test_windows(test_windows: int) -> None:
    """Refuses a number of windows that nobody can mean."""
    if test_windows < 0:
        raise InputError(
            f"Expected --test-windows of at least 0; found {test_windows}. Ask for 0 test windows to train on everything.",
            where="test_windows",
        )


def derive_model_name(name: str) -> str:
    """The name of data as the registry takes it for a model's."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name).lstrip("_-")[:64] or "forecaster"
