"""The network and its rollout."""
