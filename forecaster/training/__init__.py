"""Fitting of networks: data, loss, optimiser, checkpoints, presets and selection."""
