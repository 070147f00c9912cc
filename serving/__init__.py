"""What happens on a request: wire format, batching, readiness, the model in use and its replacement."""
