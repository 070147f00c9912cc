"""The routes of the service: one file per computation, the endpoints that call them, and the application."""
