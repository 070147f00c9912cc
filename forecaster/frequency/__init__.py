"""Frequencies: their canonical names, timestamps and steps on their grids, and weeks of business days."""
