"""Operations on vectors, and the order of a comparison's items."""

from __future__ import annotations

import numpy as np

from clip_queue.shared import comparison
from clip_queue.shared.vectors import cosine, normalise

ROWS = np.array([[3, 4], [0, 0], [-5, 0]], dtype=np.float32)


def test_rows_are_scaled_to_length_1_and_zeros_stay_zeros() -> None:
    assert np.allclose(normalise(ROWS), np.array([[0.6, 0.8], [0, 0], [-1, 0]]))
    assert normalise(ROWS).dtype == np.float32


def test_cosines_do_not_depend_on_lengths() -> None:
    assert np.allclose(cosine(np.array([10, 0], dtype=np.float32), ROWS), [0.6, 0, -1])
    assert np.allclose(cosine(np.zeros(2, dtype=np.float32), ROWS), [0, 0, 0])


def test_a_cosine_is_never_above_1() -> None:
    rows = np.random.default_rng(5).normal(size=(2000, 128)).astype(np.float32)
    own = np.array([cosine(row, row[None])[0] for row in rows])
    assert own.max() <= 1
    assert np.allclose(own, 1, atol=1e-6)
    assert min(cosine(row, -row[None])[0] for row in rows) >= -1


def test_nor_does_a_tiny_length_change_it() -> None:
    tiny = np.full(4, 1e-7, dtype=np.float32)
    assert np.allclose(cosine(tiny, np.array([tiny, -tiny, [0, 0, 0, 0]])), [1, -1, 0])


def test_a_comparison_has_its_subject_first() -> None:
    assert comparison.join("subject", ["a", "b"]) == ["subject", "a", "b"]
    subject, prompts = comparison.split(ROWS)
    assert subject.tolist() == [3, 4]
    assert prompts.tolist() == [[0, 0], [-5, 0]]
    assert [comparison.caller_index(place) for place in range(3)] == [None, 0, 1]
