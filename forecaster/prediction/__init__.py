"""Prediction with a fitted model: validation of the request, choice of the engine, truncation of histories, the predictor."""
