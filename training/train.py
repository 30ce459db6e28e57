"""The loop: 128 concepts a step, one drawing, one name text and one keyword text of each."""

import math
import time
from dataclasses import replace
from pathlib import Path

import open_clip
import torch
from torch import nn

from training.average import Average
from training.batches import Batches, prefetched
from training.concepts import Concept
from training.losses import Prototypes, total_loss
from training.model import CONFIG, encode_images, encode_texts, export, new_model
from training.recipe import Recipe
from training.refine import embed_bank, refine_texts
from training.render import Images
from training.texts import Texts


class Schedule:
    """The rate's share at each step of a round: a linear warm-up, a plain, a linear fall over the last steps.

    With `minutes`, the fall begins when the time that is left is the time that it will take; the round is then
    the very round of that many steps.
    """

    def __init__(self, recipe: Recipe, steps: int, minutes: float | None = None) -> None:
        self._recipe, self._minutes, self._began = recipe, minutes, time.monotonic()
        self.steps = steps

    def share(self, step: int) -> float:
        recipe = self._recipe
        plain = self.steps * (1 - recipe.cooling)
        if step < plain and self._minutes and step > recipe.warm_up:
            elapsed = time.monotonic() - self._began
            if elapsed > 60 * self._minutes * (1 - recipe.cooling):
                self.steps = round(step / (1 - recipe.cooling))
        if step < recipe.warm_up:
            return step / recipe.warm_up
        return min(1.0, (self.steps - step + 1) / (self.steps * recipe.cooling))


def train(images: Images, concepts: list[Concept], recipe: Recipe, output: Path, interim: Path) -> None:
    """Train from random weights and export the model to `output`, to `interim` on the way.

    Both towers, both towers again from the average of the first round, then the text tower alone.
    """
    torch.manual_seed(recipe.seed)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    vocabulary = Texts(concepts, recipe.seed).vocabulary
    model = new_model(len(vocabulary.known))
    model.visual.to(memory_format=torch.channels_last)
    table = Prototypes(len(concepts), CONFIG["model_cfg"]["embed_dim"])
    first = Schedule(recipe, recipe.steps, recipe.minutes)
    train_both(model, table, images, concepts, recipe, first, recipe.rate, interim)
    train_again(model, images, concepts, recipe, interim)
    export(refine_texts(model, images, concepts, recipe), vocabulary.known, output)


def train_again(model: open_clip.CLIP, images: Images, concepts: list[Concept], recipe: Recipe, interim: Path) -> None:
    """The second round: other draws, a lower rate, and a table that begins at the means of the images."""
    again = replace(recipe, seed=recipe.seed + 2)
    table = Prototypes.of(embed_bank(model, images, concepts, again.seed), images.concept, len(concepts))
    train_both(model, table, images, concepts, again, Schedule(again, again.again_steps), again.again_rate, interim)


def train_both(
    model: open_clip.CLIP,
    prototypes: Prototypes,
    images: Images,
    concepts: list[Concept],
    recipe: Recipe,
    schedule: Schedule,
    rate: float,
    interim: Path,
) -> None:
    """A round of both towers from the model's weights; it leaves the average of the round in the model."""
    texts = Texts(concepts, recipe.seed)
    tower = torch.compile(model.visual) if recipe.compile else model.visual
    optimizer = _optimizer(model, prototypes, recipe)
    average = Average(model, recipe.average)
    model.train()
    began = time.monotonic()
    for step, work in enumerate(prefetched(Batches(images, concepts, texts, recipe)), start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate * schedule.share(step)
        name, keyword = encode_texts(model, work.tokens, work.ends).split(len(work.concepts))
        image = encode_images(tower, work.pixels)
        scale = model.logit_scale.exp()
        loss = total_loss(image, name, keyword, work.concepts, work.meanings, scale, prototypes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        average.update(model)
        if step % 50 == 0:
            pace = (time.monotonic() - began) / step
            scale_now = model.logit_scale.exp().item()
            print(f"step {step}/{schedule.steps}  loss {loss.item():.3f}  scale {scale_now:.1f}  {pace:.3f} s a step")
        if step >= schedule.steps:
            break
        if step % recipe.save_every == 0:
            export(average.state, texts.vocabulary.known, interim)
    model.load_state_dict(average.state)


def _optimizer(model: open_clip.CLIP, prototypes: Prototypes, recipe: Recipe) -> torch.optim.Optimizer:
    named = list(model.named_parameters())
    decayed = [p for name, p in named if p.ndim >= 2 and "embedding" not in name]
    kept = [p for name, p in named if p.ndim < 2 or "embedding" in name]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe.decay},
            {"params": [*kept, *prototypes.parameters()], "weight_decay": 0.0},
        ],
        lr=recipe.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
