"""Hyperparameter search with Optuna: search space, study, trials, plots."""
