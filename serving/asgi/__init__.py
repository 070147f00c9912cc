"""ASGI middleware and its parts: authentication, admission, bodies, compression, metrics, static files."""
