"""Experiment tracking: everything that writes to MLflow runs or reads from them."""
