"""The lanes of the queue: which jobs go before which."""

from __future__ import annotations

from enum import StrEnum


class Lane(StrEnum):
    """In order of precedence: a lane gets the time that the lanes before it do not need."""

    INTERACTIVE = "interactive"  # a caller waits for the response
    BACKGROUND = "background"  # a caller polls
    BULK = "bulk"  # shards of a dataset
