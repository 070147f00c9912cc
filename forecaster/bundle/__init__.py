"""A fitted model on disk: the bundle folder, and the golden requests that prove it."""
