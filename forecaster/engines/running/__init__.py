"""The engine of networks with a running scale: numpy, with the compiled kernel where it is installed."""
