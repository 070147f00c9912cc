"""The engines that compute a rollout: the compiled kernel, an ONNX graph, and PyTorch. They agree within stated tolerances."""
