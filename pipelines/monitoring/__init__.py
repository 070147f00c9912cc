"""Monitoring of a model in production: accuracy, coverage and drift from late actuals, and the shadow test."""
