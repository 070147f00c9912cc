"""Training: the choice of a specification, the fit with its tracked run, and the model card."""
