"""The pretrained network `base`: its specification for any season, and its weights."""
