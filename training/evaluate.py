"""The figures of a model, computed from its vectors. It needs numpy alone.

The vectors need not have length 1, because their cosines are compared.
"""

import numpy as np
from numpy.typing import NDArray

from clip_queue.shared.vectors import Matrix, normalise


def cosines(left: Matrix, right: Matrix) -> Matrix:
    """[N, D] and [M, D] → cosines float32 [N, M]."""
    out: Matrix = normalise(left) @ normalise(right).T
    return out


def top_k(images: Matrix, names: Matrix, shown: NDArray[np.integer], k: int = 1) -> float:
    """Share of images whose right name is among the k nearest of all names.

    images [N, D]; names [M, D]; shown int [N], the row in `names` of what each image shows.
    """
    scores = cosines(images, names)
    own = scores[np.arange(len(shown)), shown]
    return float(((scores > own[:, None]).sum(axis=1) < k).mean())


def among_random_names(
    images: Matrix, names: Matrix, shown: NDArray[np.integer], candidates: int = 10, rounds: int = 10, seed: int = 0
) -> float:
    """Share of images nearest to the right one among `candidates` names, the others drawn at random.

    Shapes as in `top_k`; the mean over `rounds` draws.
    """
    draw = np.random.default_rng(seed)
    scores = cosines(images, names)
    own = scores[np.arange(len(shown)), shown]
    hits = []
    for _ in range(rounds):
        others = draw.integers(0, len(names) - 1, size=(len(shown), candidates - 1))
        others += others >= shown[:, None]  # step over the right one
        hits.append((np.take_along_axis(scores, others, axis=1) <= own[:, None]).all(axis=1))
    return float(np.mean(hits))


def keyword_first_hit(keywords: Matrix, images: Matrix, fits: NDArray[np.bool_]) -> float:
    """Share of keywords whose nearest image is one that has the keyword.

    keywords [K, D]; images [N, D]; fits bool [K, N]. Keywords that no image has are left out.
    """
    known = fits.any(axis=1)
    first = cosines(keywords[known], images).argmax(axis=1)
    return float(fits[known][np.arange(len(first)), first].mean())
