"""What holds in every test: one thread, shapes are checked, and of other people's warnings only those known are let pass."""

from __future__ import annotations

import pytest
import torch

from tests import shape_checks

shape_checks.install_shape_checks()
torch.set_num_threads(1)  # small networks are slower on many, and tests run beside each other


def pytest_configure(config: pytest.Config) -> None:
    # Lightning 2.6 asks torch 2.13 in an old way.
    config.addinivalue_line("filterwarnings", "ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
