"""Python's collector of reference cycles, in a process that has started: what was loaded then stays for good."""

from __future__ import annotations

import gc


def freeze() -> None:
    """Take all that is in memory now out of every later collection. Call it once a process is ready to work.

    The modules of the API are some hundred thousand objects, of a worker with torch more; each full collection looks
    at every one and finds nothing. Without them it costs what the requests under way hold.
    """
    gc.collect()
    gc.freeze()
