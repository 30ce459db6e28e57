"""Ending a process that cannot go on. Its supervisor then starts another."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

log = logging.getLogger(__name__)

EXIT_CODE = 70


def die(error: BaseException) -> NoReturn:
    """End the process at once, with exit code 70. Its jobs are queued again when its lease runs out."""
    log.critical("worker ends: %s: %s", type(error).__name__, error)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(EXIT_CODE)
