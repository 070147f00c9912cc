"""Promotion and rollback: evidence, the gate and its policy, the audit log, and the report of a verdict."""
