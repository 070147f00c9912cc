"""Fitted models on disk: the bundle folder, and the golden requests that verify it."""
