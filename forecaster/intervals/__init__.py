"""Prediction intervals: split conformal calibration, and its adaptation to late actuals."""
