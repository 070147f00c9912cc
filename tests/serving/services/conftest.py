"""Imports BentoML once, without the deprecation warnings of its own imports."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import serving.services.packaged  # noqa: F401
