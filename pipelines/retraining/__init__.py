"""Retraining: whether one is needed, and one retraining from the data to the verdict."""
