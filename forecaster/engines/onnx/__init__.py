"""The rollout as an ONNX graph: `export` writes it, and `runner` runs it without torch."""
