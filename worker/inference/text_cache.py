"""A cache of text features: labels are sent again and again.

Each owner has its own: otherwise the time of an answer would tell which texts other owners have embedded. Without API
keys all jobs have one owner. The size is that of all owners together, and the text used longest ago goes first. So an
owner can push out another's texts: that tells how much others embed, as the load does, and not what.
"""

from __future__ import annotations

import threading

from cachetools import LRUCache

from clip_queue.shared.vectors import Vector


class TextCache:
    """The features (dimension,) of the ``size`` texts that were used last; for many threads. 0: no cache."""

    def __init__(self, size: int) -> None:
        self._features: LRUCache[tuple[str, str, str], Vector] = LRUCache(size)
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def get(self, owner: str, fingerprint: str, text: str) -> Vector | None:
        """The features of an owner's text by the model with this fingerprint; None if they are not in the cache."""
        with self._lock:
            features = self._features.get((owner, fingerprint, text))
            if features is None:
                self.misses += 1
            else:
                self.hits += 1
            return features

    def put(self, owner: str, fingerprint: str, text: str, features: Vector) -> None:
        if self._features.maxsize:
            with self._lock:
                self._features[owner, fingerprint, text] = features
