"""The loop: 128 concepts a step, one drawing, one name text and one keyword text of each."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from training.augment import augment
from training.concepts import Concept
from training.losses import Prototypes, total_loss
from training.model import CONFIG, IMAGE_SIZE, encode_images, encode_texts, export, new_model
from training.render import MONOCHROME, STYLES, Pictures
from training.texts import Texts


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run."""

    steps: int = 7000
    batch: int = 128  # distinct concepts a step
    rate: float = 2e-3
    warm_up: int = 100  # steps
    decay: float = 0.05  # of matrices; not of the word table, biases and norms
    average: float = 0.998  # share of the averaged weights that stays at each step
    seed: int = 0
    monochrome_share: float = 0.5  # how often a black drawing is taken, against a coloured one
    compile: bool = True  # the image tower, by torch.compile (needs a C++ compiler)
    save_every: int = 500  # steps between interim exports


class Batches:
    """Concepts in shuffled rounds, one random style of each."""

    def __init__(self, pictures: Pictures, concepts: list[Concept], recipe: Recipe) -> None:
        self._pictures, self._recipe = pictures, recipe
        self._random = np.random.default_rng(recipe.seed)
        self._draw = torch.Generator().manual_seed(recipe.seed)
        self._mirrors = torch.tensor([concept.mirrors for concept in concepts])
        self._drawings = [np.flatnonzero(pictures.concept == index) for index in range(len(concepts))]
        self._black = np.isin(pictures.style, [STYLES.index(name) for name in MONOCHROME])
        share = np.where(self._black, recipe.monochrome_share, 1.0)
        self._shares = [share[drawings] / share[drawings].sum() for drawings in self._drawings]

    def __iter__(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Concepts int64 [B] and their normalised pixels [B, 3, 64, 64], without end."""
        waiting = np.empty(0, dtype=np.int64)
        while True:
            if len(waiting) < self._recipe.batch:
                later = self._random.permutation(len(self._drawings))
                waiting = np.concatenate([waiting, later[~np.isin(later, waiting)]])
            concepts, waiting = np.split(waiting, [self._recipe.batch])
            chosen = np.array([self._random.choice(self._drawings[c], p=self._shares[c]) for c in concepts])
            yield concepts, augment(
                torch.from_numpy(self._pictures.pixels[chosen]), self._mirrors[torch.from_numpy(concepts)],
                torch.from_numpy(self._black[chosen]), IMAGE_SIZE, self._draw,
            )


class Average:
    """The moving average of a model's weights and running statistics; it is what is exported."""

    def __init__(self, model: nn.Module, keep: float) -> None:
        self._keep, self._step = keep, 0
        self.state = {key: value.detach().clone() for key, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self._step += 1
        keep = min(self._keep, (1 + self._step) / (10 + self._step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - keep)
            else:
                self.state[key].copy_(value)


def train(pictures: Pictures, concepts: list[Concept], recipe: Recipe, output: Path, interim: Path) -> None:
    """Train from random weights and export the averaged model to `output`, to `interim` on the way."""
    torch.manual_seed(recipe.seed)
    texts = Texts(concepts, recipe.seed)
    vocabulary = texts.vocabulary
    model = new_model(len(vocabulary.known))
    model.visual.to(memory_format=torch.channels_last)
    tower = torch.compile(model.visual) if recipe.compile else model.visual
    prototypes = Prototypes(len(concepts), CONFIG["model_cfg"]["embed_dim"])
    optimizer = _optimizer(model, prototypes, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    average = Average(model, recipe.average)

    model.train()
    began = time.monotonic()
    for step, (chosen, pixels) in zip(range(1, recipe.steps + 1), Batches(pictures, concepts, recipe), strict=False):
        keyword_texts, meanings = texts.keyword_texts(chosen)
        tokens, ends = vocabulary.encode(texts.names(chosen) + keyword_texts)
        written = encode_texts(model, torch.from_numpy(tokens), torch.from_numpy(ends))
        name, keyword = written.split(len(chosen))
        loss = total_loss(
            encode_images(tower, pixels), name, keyword, torch.from_numpy(chosen), torch.from_numpy(meanings),
            model.logit_scale.exp(), prototypes,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        average.update(model)
        if step % 50 == 0:
            pace = (time.monotonic() - began) / step
            print(f"step {step:5d}  loss {loss.item():.3f}  scale {model.logit_scale.exp().item():.1f}  "
                  f"{pace:.3f} s a step", flush=True)
        if step % recipe.save_every == 0 and step < recipe.steps:
            export(average.state, vocabulary.known, interim)
    export(average.state, vocabulary.known, output)


def _optimizer(model: open_clip.CLIP, prototypes: Prototypes, recipe: Recipe) -> torch.optim.Optimizer:
    named = list(model.named_parameters())
    decayed = [p for name, p in named if p.ndim >= 2 and "embedding" not in name]
    kept = [p for name, p in named if p.ndim < 2 or "embedding" in name]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.decay},
            {"params": [*kept, *prototypes.parameters()], "weight_decay": 0.0},
        ],
        lr=recipe.rate, betas=(0.9, 0.98), fused=True,
    )


def _rate(step: int, recipe: Recipe) -> float:
    """Share of the full rate: linear warm-up, then a cosine down to nothing."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)))
