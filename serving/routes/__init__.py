"""The routes of the service: one file per route, and the application that mounts them."""
