"""Promotion and rollback: evidence, the gate and its policy, the audit log, the report of a verdict."""
