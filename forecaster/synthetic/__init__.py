"""Generated series: documented families, and the mixtures of them that a network can be trained on."""
