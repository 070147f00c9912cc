"""Atomic writes that survive a kill, and the fail points that tests use to prove it."""
