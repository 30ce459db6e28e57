"""The loop: 128 concepts a step, one drawing, one name text and one keyword text of each."""

import math
import time
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
from training.refine import refine_texts
from training.render import Pictures
from training.texts import Texts


class Schedule:
    """The rate's share at each step: a linear warm-up, a plain, a linear fall over the last steps.

    With `minutes`, the fall begins when the time that is left is the time that it will take; the run is then
    the very run of that many steps.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._began = recipe, time.monotonic()
        self.steps = recipe.steps

    def share(self, step: int) -> float:
        recipe = self._recipe
        plain = self.steps * (1 - recipe.cooling)
        if step < plain and recipe.minutes and step > recipe.warm_up:
            elapsed = time.monotonic() - self._began
            if elapsed > 60 * recipe.minutes * (1 - recipe.cooling):
                self.steps = round(step / (1 - recipe.cooling))
        if step < recipe.warm_up:
            return step / recipe.warm_up
        return min(1.0, (self.steps - step + 1) / (self.steps * recipe.cooling))


def train(pictures: Pictures, concepts: list[Concept], recipe: Recipe, output: Path, interim: Path) -> None:
    """Train from random weights and export the averaged model to `output`, to `interim` on the way."""
    torch.manual_seed(recipe.seed)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    texts = Texts(concepts, recipe.seed)
    vocabulary = texts.vocabulary
    model = new_model(len(vocabulary.known))
    model.visual.to(memory_format=torch.channels_last)
    tower = torch.compile(model.visual) if recipe.compile else model.visual
    prototypes = Prototypes(len(concepts), CONFIG["model_cfg"]["embed_dim"])
    optimizer = _optimizer(model, prototypes, recipe)
    schedule = Schedule(recipe)
    average = Average(model, recipe.average)

    model.train()
    began = time.monotonic()
    for step, work in enumerate(prefetched(Batches(pictures, concepts, texts, recipe)), start=1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * schedule.share(step)
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
            export(average.state, vocabulary.known, interim)
    model.load_state_dict(average.state)
    export(refine_texts(model, pictures, concepts, recipe), vocabulary.known, output)


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
