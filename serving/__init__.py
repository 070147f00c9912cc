"""What happens on a request: wire formats, batching, readiness, the deployed model and its replacement."""
