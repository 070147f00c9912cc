"""The model registry in MLflow; the only folder of this package that imports MLflow."""
