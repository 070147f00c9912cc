"""Files that survive a kill: atomic writes, and the fail points that tests use to prove it."""
