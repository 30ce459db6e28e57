"""Text embeddings that were computed before: labels repeat."""

from __future__ import annotations

import threading

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray


class TextCache:
    """The ``size`` texts used last, by model fingerprint and text; for many threads."""

    def __init__(self, size: int) -> None:
        self._rows: LRUCache[tuple[str, str], NDArray[np.float32]] = LRUCache(size)
        self._lock = threading.Lock()

    def get(self, fingerprint: str, text: str) -> NDArray[np.float32] | None:
        with self._lock:
            return self._rows.get((fingerprint, text))

    def put(self, fingerprint: str, text: str, row: NDArray[np.float32]) -> None:
        if self._rows.maxsize:
            with self._lock:
                self._rows[fingerprint, text] = row
