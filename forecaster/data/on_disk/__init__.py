"""Panels on disk, for trainings on more data than the memory holds."""
