"""MLflow runs: everything that writes to them or reads from them."""
