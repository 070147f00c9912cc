"""Retraining: whether one is due, and one retraining from data to verdict."""
