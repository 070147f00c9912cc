"""Logs of our processes: one JSON object a line, on standard output."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """Writes a record as JSON; a message with line breaks, or a traceback, stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure_logging() -> None:
    """Sends what `serving` logs to standard output; BentoML's set-up shows other loggers only from a warning up."""
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(JsonFormatter())
    access = logging.StreamHandler(sys.stdout)  # the guard writes whole lines
    for name, handler in (("serving", lines), ("serving.access", access)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
