"""Prediction intervals: split conformal calibration, and its adaptation to actuals that arrive later."""
