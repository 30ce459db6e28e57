"""The types of arrays, and the operations on vectors, that several packages use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]  # (dimension,)
Matrix = NDArray[np.float32]  # (n, dimension)
Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
Tokens = NDArray[np.int64]  # (length,)

_TINY = np.float32(1e-12)  # keeps a vector of zeros from being divided by zero


def normalise(matrix: Matrix) -> Matrix:
    """The rows of ``matrix`` (n, dimension) scaled to length 1, float32; a row of zeros stays a row of zeros."""
    norms: Matrix = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.divide(matrix, np.maximum(norms, _TINY), dtype=np.float32)


def cosine(vector: Vector, matrix: Matrix) -> Vector:
    """The cosines (n,) of ``vector`` (dimension,) with each row of ``matrix`` (n, dimension), computed in float32.

    They are within -1 and 1; of a vector of zeros they are 0.
    """
    lengths, length = np.linalg.norm(matrix, axis=1), np.linalg.norm(vector)
    out: Vector = matrix @ (vector / np.maximum(length, _TINY)) / np.maximum(lengths, _TINY)
    return out.clip(-1.0, 1.0)  # rounding goes beyond
