"""The deployed model: the slot it is read from, the follower that replaces it, and a rollback without the registry."""
