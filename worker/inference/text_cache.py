"""A cache of text features: labels are sent again and again."""

from __future__ import annotations

import threading

from cachetools import LRUCache

from clip_queue.shared.vectors import Vector


class TextCache:
    """The features (dimension,) of the ``size`` texts that were used last; for many threads. 0: no cache."""

    def __init__(self, size: int) -> None:
        self._features: LRUCache[tuple[str, str], Vector] = LRUCache(size)
        self._lock = threading.Lock()

    def get(self, fingerprint: str, text: str) -> Vector | None:
        """The features of a text by the model with this fingerprint; None if they are not in the cache."""
        with self._lock:
            return self._features.get((fingerprint, text))

    def put(self, fingerprint: str, text: str, features: Vector) -> None:
        if self._features.maxsize:
            with self._lock:
                self._features[fingerprint, text] = features
