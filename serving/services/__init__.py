"""The BentoML services: what they have in common, and the one of a Bento that contains its model."""
