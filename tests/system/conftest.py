"""What all tests of the whole system share: a database that is migrated once."""

from __future__ import annotations

from tests.pipelines.conftest import data, fresh, migrated

__all__ = ["data", "fresh", "migrated"]
