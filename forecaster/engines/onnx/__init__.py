"""The rollout as one ONNX graph: `export` writes it, `runner` runs it without torch."""
