"""Fixtures of the benchmark tests: a tracking database that is migrated once."""

from __future__ import annotations

from tests.pipelines.conftest import migrated_root

__all__ = ["migrated_root"]
