"""Forecasts for requests: from a request body to one outcome per series, with batching, sampling and deadlines."""
