"""Monitoring of a champion in production: accuracy, coverage and drift from late actuals, and the shadow test."""
