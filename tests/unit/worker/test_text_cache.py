"""The cache of text features: it is bounded, forgets the least used text first, and keeps the models apart."""

from __future__ import annotations

import threading

import numpy as np

from clip_queue.worker.inference.text_cache import TextCache


def row(value: float) -> np.ndarray:
    return np.full(4, value, dtype=np.float32)


def test_a_text_is_remembered_under_its_model_only() -> None:
    cache = TextCache(4)
    cache.put("model a", "cat", row(1))
    known = cache.get("model a", "cat")
    assert known is not None
    np.testing.assert_array_equal(known, row(1))
    assert cache.get("model b", "cat") is None
    assert cache.get("model a", "dog") is None


def test_the_text_used_longest_ago_goes_first() -> None:
    cache = TextCache(3)
    for n, text in enumerate("abc"):
        cache.put("m", text, row(n))
    cache.get("m", "a")
    cache.put("m", "d", row(3))
    assert [cache.get("m", text) is not None for text in "abcd"] == [True, False, True, True]


def test_no_more_than_its_size_is_remembered_even_by_many_threads() -> None:
    cache = TextCache(50)

    def fill(start: int) -> None:
        for n in range(start, start + 500):
            cache.put("m", str(n), row(n))
            known = cache.get("m", str(n % 97))
            assert known is None or known[0] == n % 97

    threads = [threading.Thread(target=fill, args=(500 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sum(cache.get("m", str(n)) is not None for n in range(2000)) == 50


def test_size_zero_remembers_nothing() -> None:
    cache = TextCache(0)
    cache.put("m", "cat", row(1))
    assert cache.get("m", "cat") is None
