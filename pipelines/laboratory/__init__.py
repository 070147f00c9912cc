"""Experiments that show what recurrent networks learn, each trained and evaluated with the code of every other model."""
