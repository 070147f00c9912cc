"""Log output of the serving processes: one JSON object per line, on standard output."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, even if its message has line breaks or it carries a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as one line of JSON."""
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
    """Sends the `serving` loggers to standard output; BentoML's configuration shows other loggers from WARNING up."""
    json_handler = logging.StreamHandler(sys.stdout)
    json_handler.setFormatter(JsonFormatter())
    access_handler = logging.StreamHandler(sys.stdout)  # RequestMiddleware formats its own lines
    for name, handler in (("serving", json_handler), ("serving.access", access_handler)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
