"""Explanations of a forecast: attribution to inputs, traces of gates and hidden states, plots."""
