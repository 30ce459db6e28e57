"""The data of a step, drawn ahead in a thread: images, their names, their keywords."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import Queue
from threading import Event, Thread

import numpy as np
import torch
from torch import Tensor

from training.augment import augment
from training.concepts import Concept
from training.model import IMAGE_SIZE
from training.recipe import Recipe
from training.render import MONOCHROME, STYLES, Images
from training.texts import Texts


@dataclass(frozen=True)
class Batch:
    """The data of one step of B distinct concepts.

    pixels: float32 [B, 3, 64, 64], normalised; concepts: int64 [B];
    tokens, ends: int64 [2B, L] and [2B], B name texts and B keyword texts;
    meanings: float32 [B, all concepts], 1 where a keyword text fits.
    """

    pixels: Tensor
    concepts: Tensor
    tokens: Tensor
    ends: Tensor
    meanings: Tensor


class Batches:
    """Concepts in shuffled rounds, one random style of each."""

    def __init__(self, images: Images, concepts: list[Concept], texts: Texts, recipe: Recipe) -> None:
        self._images, self._texts, self._recipe = images, texts, recipe
        self._random = np.random.default_rng(recipe.seed)
        self._draw = torch.Generator().manual_seed(recipe.seed)
        self._mirrors = torch.tensor([concept.mirrors for concept in concepts])
        self._drawings = [np.flatnonzero(images.concept == index) for index in range(len(concepts))]
        self._black = np.isin(images.style, [STYLES.index(name) for name in MONOCHROME])
        share = np.where(self._black, recipe.monochrome_share, 1.0)
        self._shares = [share[drawings] / share[drawings].sum() for drawings in self._drawings]

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end."""
        waiting = np.empty(0, dtype=np.int64)
        while True:
            if len(waiting) < self._recipe.batch:
                later = self._random.permutation(len(self._drawings))
                waiting = np.concatenate([waiting, later[~np.isin(later, waiting)]])
            concepts, waiting = np.split(waiting, [self._recipe.batch])
            keywords, meanings = self._texts.keyword_texts(concepts)
            tokens, ends = self._texts.vocabulary.encode(self._texts.names(concepts) + keywords)
            arrays = (concepts, tokens, ends, meanings)
            yield Batch(self._draw_images(concepts), *map(torch.from_numpy, arrays))

    def _draw_images(self, concepts: np.ndarray) -> Tensor:
        chosen = np.array([self._random.choice(self._drawings[c], p=self._shares[c]) for c in concepts])
        return augment(
            torch.from_numpy(self._images.pixels[chosen]),
            self._mirrors[torch.from_numpy(concepts)],
            torch.from_numpy(self._black[chosen]),
            IMAGE_SIZE,
            self._draw,
        )


def prefetched(batches: Iterable[Batch], ahead: int = 4) -> Iterator[Batch]:
    """The same batches, made in a thread of their own while a step computes."""
    waiting: Queue[Batch] = Queue(ahead)
    stopped = Event()

    def make() -> None:
        for batch in batches:
            waiting.put(batch)
            if stopped.is_set():
                return

    Thread(target=make, name="batches", daemon=True).start()
    try:
        while True:
            yield waiting.get()
    finally:
        stopped.set()
