"""Backtests, baselines and plots."""
