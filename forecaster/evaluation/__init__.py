"""Backtests, calibration, significance tests and plots of fitted models and baselines."""
