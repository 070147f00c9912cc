"""The command `forecaster mcp`: a server of the Model Context Protocol, for assistants that call tools."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from forecaster.installation import describe_missing_module
from pipelines.commands.options import RootOptions
from pipelines.settings import SERVING_PREFIX, build_serving_environment

_ROOT_OPTIONS = RootOptions()


def mcp(*, root_options: RootOptions = _ROOT_OPTIONS) -> None:
    """Serves the tools `forecast`, `explain` and `model` on standard input and output, by the Model Context Protocol.

    The model is the one that was served last from this root, or else `base`, the pretrained network. A client starts this command
    itself: it opens no port, and ends with its input. `forecaster serve NAME` fills the slot of the root.
    """
    if find_spec("mcp") is None:
        raise describe_missing_module("mcp", purpose="a server of the Model Context Protocol")
    root = root_options.open_root()
    environment = build_serving_environment(os.environ, root, model=None, host=None, port=None)
    if not os.path.lexists(Path(environment[f"{SERVING_PREFIX}SLOT"]) / "current"):
        environment = build_serving_environment(os.environ, root, model=None, host=None, port=None, pretrained=True)
    # Run by name rather than imported: serving and pipelines meet only in the registry.
    os.execve(sys.executable, [sys.executable, "-m", "serving.services.mcp_server"], environment)  # noqa: S606
