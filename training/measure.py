"""Load the exported checkpoint as a user would, embed the held-out style with it, and take all figures."""

from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from training.concepts import Concept
from training.evaluate import among_random_names, cosines, keyword_first_hit, top_k
from training.templates import FREE_FORM, HELD_OUT

BATCH = 256


class Loaded:
    """A checkpoint in open_clip's `local-dir:` form, computing in float32."""

    def __init__(self, folder: Path) -> None:
        source = f"local-dir:{folder}"
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(source)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(source)

    @torch.inference_mode()
    def images(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 RGB [N, H, W, 3] → float32 [N, D]."""
        batches = [
            torch.stack([self._preprocess(Image.fromarray(p)) for p in pixels[i : i + BATCH]])
            for i in range(0, len(pixels), BATCH)
        ]
        return np.concatenate([self._model.encode_image(batch).numpy() for batch in batches])

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> np.ndarray:
        """Texts → float32 [N, D]."""
        batches = [self._tokenizer(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
        return np.concatenate([self._model.encode_text(batch).numpy() for batch in batches])


def keyword_table(concepts: list[Concept], shown: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The keywords of what is shown, as the words' package has them, and what they fit: bool [K, N]."""
    words = sorted({word for index in shown for word in concepts[index].tags})
    return words, np.array([[word in concepts[index].tags for index in shown] for word in words])


def measure(folder: Path, concepts: list[Concept], pixels: np.ndarray, shown: np.ndarray) -> dict:
    """All figures on images uint8 [N, H, W, 3] that show the concepts `shown`, int [N]; percentages."""
    model = Loaded(folder)
    images = model.images(pixels)
    labels = [concept.name for concept in concepts]
    names = model.texts(labels)
    keywords, fits = keyword_table(concepts, shown)

    held_out = [top_k(images, model.texts([t.replace("{}", name) for name in labels]), shown) for t in HELD_OUT]
    return {
        "pictures": len(shown),
        "names": len(names),
        "top-1": percent(top_k(images, names, shown)),
        "top-5": percent(top_k(images, names, shown, 5)),
        "among 10 random names": percent(among_random_names(images, names, shown)),
        "keyword to picture, first hit": percent(keyword_first_hit(model.texts(keywords), images, fits)),
        "keywords": len(keywords),
        "top-1, held-out templates, mean": percent(float(np.mean(held_out))),
        "top-1, held-out templates, worst": percent(min(held_out)),
        "held-out templates": {t: percent(share) for t, share in zip(HELD_OUT, held_out, strict=True)},
        "free-form": free_form(model, images, [labels[index] for index in shown], names, labels),
    }


def free_form(model: Loaded, images: np.ndarray, shown: list[str], names: np.ndarray, labels: list[str]) -> dict:
    """Prompts as a person types them → the image found first; how many are right, and how many by nearest name."""
    prompts = model.texts([prompt for prompt, _ in FREE_FORM])
    scores = cosines(prompts, images)
    nearest = [labels[best] for best in cosines(prompts, names).argmax(axis=1)]
    by_name = sum(name in answers for name, (_, answers) in zip(nearest, FREE_FORM, strict=True))
    found = [shown[best] for best in scores.argmax(axis=1)]
    right = [name in answers for name, (_, answers) in zip(found, FREE_FORM, strict=True)]
    answers = {
        prompt: f"{name}{'' if good else ' (wrong)'}"
        for (prompt, _), name, good in zip(FREE_FORM, found, right, strict=True)
    }
    return {"prompts": len(right), "right": sum(right), "right by nearest name": by_name, "found": answers}


def percent(share: float) -> float:
    return round(100 * share, 1)
