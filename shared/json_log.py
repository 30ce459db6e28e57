"""Which lines are logged (setting ``log_level``), and as JSON or not (``log_format``): this project's, uvicorn's,
Celery's and those of what they import.

A line of JSON says ``time``, ``level``, ``logger`` and ``message``, of an exception ``exception``, and of
:data:`FIELDS` those that its record has. Neither inputs nor keys are among them.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from clip_queue.shared.settings import Settings

FIELDS = ("request_id", "trace_id", "job_id", "model", "method", "route", "status", "code", "items")
OURS = "clip_queue"
UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access")  # have handlers of their own


class JsonFormatter(logging.Formatter):
    """A record as one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name in FIELDS if (value := getattr(record, name, None)) not in (None, "")}
        if record.exc_info and record.exc_info[0]:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def install(settings: Settings, *loggers: logging.Logger) -> None:
    """Have the handlers of ``loggers``, by default the root's and uvicorn's, write JSON if the settings say so.

    A root without a handler gets one on stderr: Python itself writes what is a warning or worse, and nothing else of it
    than the message.
    """
    if settings.log_format != "json":
        return
    root = logging.getLogger()
    if not loggers:
        if not root.handlers:
            root.addHandler(logging.StreamHandler())
            root.setLevel(settings.log_level.upper())
        loggers = (root, *map(logging.getLogger, UVICORN))
    logging.captureWarnings(True)  # to the logger py.warnings
    for logger in loggers:
        for handler in logger.handlers:
            handler.setFormatter(JsonFormatter())


def set_level(settings: Settings) -> None:
    """Have an API process log what the setting says; Celery sets up a worker's log itself.

    A level that uvicorn was started with stays, unless it is uvicorn's default. Without it Python would write none of
    this project's lines below a warning.
    """
    level = settings.log_level.upper()
    if not logging.getLogger().handlers:
        ours = logging.getLogger(OURS)
        ours.addHandler(logging.StreamHandler())
        ours.setLevel(level)
    for logger in map(logging.getLogger, UVICORN):
        if logger.level == logging.INFO:
            logger.setLevel(level)
