"""The last stage: the text tower alone, against images embedded once, among words that mislead.

A step without the image tower costs a third, so the text tower can meet many more sentences: here the words
beside a name are often known ones, parts of other names, so it learns which of them to go by.
"""

import math
import time

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.augment import augment
from training.average import Average
from training.concepts import Concept
from training.losses import Prototypes, total_loss
from training.model import IMAGE_SIZE, encode_texts
from training.recipe import Recipe
from training.render import MONOCHROME, STYLES, Images
from training.texts import Texts

VARIANTS = 2  # of each drawing
KEYWORDS = 2  # keyword texts for each name text
AVERAGE = 0.99


def refine_texts(model: open_clip.CLIP, images: Images, concepts: list[Concept], recipe: Recipe) -> dict[str, Tensor]:
    """Train the text tower of a model further; returns a state between before and after, the image tower untouched.

    Half of the way keeps what the images of the training styles alone would have taken away.
    """
    before = {key: value.clone() for key, value in model.state_dict().items()}
    bank = embed_bank(model, images, concepts, recipe.seed)
    texts = Texts(concepts, recipe.seed + 1, recipe.text_strays, rare_first=True)
    draw = np.random.default_rng(recipe.seed + 1)
    drawings = [np.flatnonzero(images.concept == index) for index in range(len(concepts))]
    prototypes = Prototypes.of(bank, images.concept, len(concepts))

    model.requires_grad_(False)
    tower = [parameter for name, parameter in model.named_parameters() if not name.startswith(("visual.", "logit"))]
    for parameter in tower:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW([*tower, *prototypes.parameters()], lr=recipe.text_rate, weight_decay=0, fused=True)
    average = Average(model, AVERAGE)
    scale = model.logit_scale.exp()
    began = time.monotonic()
    for step in range(1, recipe.text_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.text_rate * min(1, step / recipe.warm_up) * _fall(step, recipe.text_steps)
        chosen = draw.permutation(len(concepts))[: recipe.batch]
        image = bank[draw.integers(VARIANTS, size=len(chosen)), [draw.choice(drawings[c]) for c in chosen]]
        keywords, meanings = texts.keyword_texts(chosen.repeat(KEYWORDS))
        tokens, ends = map(torch.from_numpy, texts.vocabulary.encode(texts.names(chosen) + keywords))
        name, keyword = encode_texts(model, tokens, ends).split([len(chosen), len(keywords)])
        fits = torch.from_numpy(meanings)
        loss = total_loss(image, name, keyword, torch.from_numpy(chosen), fits, scale, prototypes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(tower, 5.0)
        optimizer.step()
        average.update(model)
        if step % 100 == 0:
            pace = (time.monotonic() - began) / step
            print(f"text step {step}/{recipe.text_steps}  loss {loss.item():.3f}  {pace:.3f} s a step", flush=True)
    return {
        key: torch.lerp(value, average.state[key], recipe.text_share) if value.is_floating_point() else value
        for key, value in before.items()
    }


@torch.inference_mode()
def embed_bank(model: open_clip.CLIP, images: Images, concepts: list[Concept], seed: int) -> Tensor:
    """Unit vectors [VARIANTS, N, D] of all drawings, each varied anew."""
    model.eval()
    draw = torch.Generator().manual_seed(seed)
    mirrors = torch.tensor([concept.mirrors for concept in concepts])[torch.from_numpy(images.concept)]
    black = torch.from_numpy(np.isin(images.style, [STYLES.index(name) for name in MONOCHROME]))
    variants = []
    for _ in range(VARIANTS):
        rows = []
        for some in torch.arange(len(images.pixels)).split(256):
            drawn = augment(torch.from_numpy(images.pixels[some]), mirrors[some], black[some], IMAGE_SIZE, draw)
            rows.append(functional.normalize(model.encode_image(drawn), dim=-1))
        variants.append(torch.cat(rows))
    return torch.stack(variants).clone()


def _fall(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))
