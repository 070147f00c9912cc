"""One training from data to bundle: fit, calibrate, backtest, model card, tracked run."""
