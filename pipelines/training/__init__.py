"""One tracked training: the sequence of `forecaster.training` with its run, its checkpoints and its bundle."""
