"""Fixtures of the system tests: a database that is migrated once."""

from __future__ import annotations

from tests.pipelines.conftest import fresh_root, migrated_root, noise_data

__all__ = ["fresh_root", "migrated_root", "noise_data"]
