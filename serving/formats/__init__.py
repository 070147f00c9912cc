"""The wire formats of requests and responses: one file per format, and the validation that they share."""
