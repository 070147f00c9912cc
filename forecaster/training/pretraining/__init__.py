"""Pretraining on synthetic series: the networks, their batches and training, and the card of the result."""
