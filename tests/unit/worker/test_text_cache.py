"""The cache of text features: it is bounded, forgets the least used text first, and keeps the models apart."""

from __future__ import annotations

import threading

import numpy as np

from clip_queue.worker.inference.text_cache import TextCache


def row(value: float) -> np.ndarray:
    return np.full(4, value, dtype=np.float32)


def test_a_text_is_remembered_under_its_model_only() -> None:
    cache = TextCache(4)
    cache.put("o", "model a", "cat", row(1))
    known = cache.get("o", "model a", "cat")
    assert known is not None
    np.testing.assert_array_equal(known, row(1))
    assert cache.get("o", "model b", "cat") is None
    assert cache.get("o", "model a", "dog") is None


def test_the_text_used_longest_ago_goes_first() -> None:
    cache = TextCache(3)
    for n, text in enumerate("abc"):
        cache.put("o", "m", text, row(n))
    cache.get("o", "m", "a")
    cache.put("o", "m", "d", row(3))
    assert [cache.get("o", "m", text) is not None for text in "abcd"] == [True, False, True, True]


def test_no_more_than_its_size_is_remembered_even_by_many_threads() -> None:
    cache = TextCache(50)

    def fill(start: int) -> None:
        for n in range(start, start + 500):
            cache.put("o", "m", str(n), row(n))
            known = cache.get("o", "m", str(n % 97))
            assert known is None or known[0] == n % 97

    threads = [threading.Thread(target=fill, args=(500 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(cache.get("o", "m", str(n)) is not None for n in range(2000)) == 50


def test_size_zero_remembers_nothing() -> None:
    cache = TextCache(0)
    cache.put("o", "m", "cat", row(1))
    assert cache.get("o", "m", "cat") is None


def test_a_text_is_remembered_for_its_owner_only() -> None:
    cache = TextCache(4)
    cache.put("tenant a", "m", "cat", row(1))
    assert cache.get("tenant b", "m", "cat") is None
    assert cache.get("tenant a", "m", "cat") is not None
