"""Comparison of runs and models: paired tests, tables and the HTML report."""
