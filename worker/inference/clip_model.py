"""A CLIP model: pixels and tokens in, float32 features out."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_queue.shared.models import RANDOM, SHIPPED, ModelInfo, ModelSpec
from clip_queue.shared.settings import Settings
from clip_queue.shared.startup import CannotWork
from clip_queue.shared.vectors import Matrix, Pixels, Tokens
from clip_queue.worker.inference import preprocess
from clip_queue.worker.inference.device import pick_device, pick_precision
from clip_queue.worker.inference.folded import fold
from clip_queue.worker.inference.image_tower import lighten
from clip_queue.worker.inference.int8_linear import Int8Linear
from clip_queue.worker.inference.libraries import PreprocessCfg, open_clip
from clip_queue.worker.inference.linear import Linear
from clip_queue.worker.inference.text import TextTower, Tokenizer
from clip_queue.worker.inference.traced import Tower, traced
from clip_queue.worker.memory import keep_freed_memory

log = logging.getLogger(__name__)

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
WEIGHTS = (".safetensors", ".bin", ".pth")  # that open_clip looks for in a folder
HUGGING_FACE = ("transformers", "tokenizers", "sentencepiece")
DTYPES = {"fp32": torch.float32, "int8": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class PendingFeatures:
    """Features that are being computed: on CUDA, the device works while the host goes on.

    They are copied to the host in float32; :meth:`result` waits for that.
    """

    def __init__(self, features: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if features.device.type == "cuda":
            self._host = torch.empty(features.shape, dtype=torch.float32, pin_memory=True)
            self._host.copy_(features.float(), non_blocking=True)
            # Of the features' own device, which need not be the current one. Blocking: waiting takes no core.
            self._event = torch.cuda.Event(blocking=True)
            self._event.record(torch.cuda.current_stream(features.device))
        else:
            self._host = features.float().cpu()

    def result(self) -> Matrix:
        """The features (n, dimension), float32, not normalised. Waits for the device."""
        if self._event is not None:
            self._event.synchronize()
        out: Matrix = self._host.numpy()
        return out


class ClipModel:
    """An open_clip model at one precision on one device.

    On a CPU many threads may use it; on other devices :attr:`preprocess`, :attr:`tokenizer`, :meth:`stack` and
    :meth:`padded`, and only one thread the rest.
    :attr:`image_size` is (height, width) in pixels; :attr:`logit_scale` is None where the architecture has none;
    :attr:`draft` is the ``draft`` that
    :func:`clip_queue.worker.inference.decode.decode` gets for this model.
    """

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        """Load the model.

        Raises:
            CannotWork: the device or the model cannot be used.
        """
        self.device = pick_device(settings.device)
        self.precision = pick_precision(settings.precision, self.device)
        self._dtype = DTYPES[self.precision]
        cache = str(settings.cache_dir) if settings.cache_dir else None
        try:
            model, name = load(spec, settings.cache_dir)
            self.config = config = checked(open_clip.get_model_preprocess_cfg(model))
            self.preprocess, self.resize = preprocess.choose(config, settings.resize, self.precision)
            self.tokenizer = Tokenizer(open_clip.get_tokenizer(name, cache_dir=cache), context_length(model))
        except MemoryError:
            raise
        except Exception as error:  # open_clip, torch and the hub raise errors of many kinds
            raise cannot_load(spec, reason(spec, error)) from error
        self.logit_scale = logit_scale(model)  # before it is rounded to the precision
        self._model = model.eval().requires_grad_(False)
        size = config.size if isinstance(config.size, (tuple, list)) else (config.size, config.size)
        self.image_size: tuple[int, int] = (size[0], size[1])
        self.draft = round(settings.jpeg_draft * max(size))
        how = [self.precision, *([self.draft] if self.draft else []), *(["fast"] if self.resize == "fast" else [])]
        self._raw = {"normalize": False} if normalises(model) else {}
        how += ["raw"] if self._raw else []
        self.fingerprint = fingerprint(model, architecture(name), config, how)
        fold(self._model)
        self._model.to(device=self.device, dtype=self._dtype)
        channels_last = self.device.type == "cpu" or self._dtype != torch.float32
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._model.visual.to(memory_format=self._format)
        # A line of pixels long: torch is several times slower where it repeats three numbers.
        self._mean = (torch.tensor(config.mean) * 255).repeat(self.image_size[1]).to(self.device)
        self._std = (torch.tensor(config.std) * 255).repeat(self.image_size[1]).to(self.device)
        layer = Int8Linear if self.precision == "int8" else Linear
        self.text_tower = TextTower(self._model, layer, self._raw)
        lighten(self._model.visual, layer)
        if layer is Int8Linear and not any(isinstance(part, Int8Linear) for part in self._model.visual.modules()):
            log.warning("%s: int8 is for transformers; images are computed at fp32", spec.name)
        self._images: Tower = self.image_tower
        self._texts: Tower = self.text_tower
        if self.device.type == "cpu":  # on CUDA graphs do it, where it counts
            keep_freed_memory()
            self._trace()
        text = self.embed_texts([self.tokenizer("a")]).result()
        image = self.embed_images([np.zeros((*self.image_size, 3), np.uint8)]).result()
        if not (np.isfinite(text).all() and np.isfinite(image).all()):
            raise cannot_load(spec, f"its vectors are not finite at {self.precision}: its weights may be broken")
        self.dimension = text.shape[1]
        self.info = ModelInfo(
            name=spec.name,
            source=public_source(spec.source),
            fingerprint=self.fingerprint,
            dimension=self.dimension,
            context_length=self.tokenizer.context_length,
            image_size=self.image_size,
            precision=self.precision,
            resize=self.resize,
            jpeg_draft=settings.jpeg_draft,
        )

    def stack(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Images, each (height, width, 3), as one batch on the host (n, height, width, 3), uint8. For many threads."""
        stack = self._on_host((len(images), *images[0].shape), torch.uint8)
        np.stack(images, out=stack.numpy())
        return stack

    def _on_host(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor that is copied to the device without waiting: from other memory CUDA may wait for earlier passes.

        torch's allocator gives the memory to nobody else before a copy that was begun from it is done.
        """
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def embed_images(self, images: Sequence[Pixels]) -> PendingFeatures:
        """Raw features of preprocessed images, each (height, width, 3), uint8, of :attr:`image_size`."""
        return self.embed_stack(self.stack(images))

    @torch.inference_mode()
    def embed_stack(self, stack: torch.Tensor) -> PendingFeatures:
        """Raw features of a batch that :meth:`stack` has made."""
        return PendingFeatures(self._images(stack.to(self.device, non_blocking=True)))

    def image_tower(self, stack: torch.Tensor) -> torch.Tensor:
        """The raw features (n, dimension) of a stack on the device."""
        lines = stack.flatten(2).float().sub_(self._mean).div_(self._std).to(self._dtype)
        batch = lines.view(stack.shape).permute(0, 3, 1, 2)  # NHWC in memory: channels_last
        features: torch.Tensor = self._model.encode_image(batch.contiguous(memory_format=self._format), **self._raw)
        return features

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[Tokens]) -> PendingFeatures:
        """Raw features of tokenised texts, each (length,), int64, with 1 ≤ length ≤ context length."""
        length = self.text_tower.length(max(map(len, texts)), self.tokenizer.context_length)
        return PendingFeatures(self._texts(self.padded(texts, length).to(self.device, non_blocking=True)))

    def _trace(self) -> None:
        shape = (2, *self.image_size, 3)
        stack = torch.arange(math.prod(shape)).remainder(251).to(torch.uint8).view(shape)
        self._images = traced(self.image_tower, self._model, stack, stack[:1])
        if self.text_tower.trims:  # what other towers do may depend on their padding
            texts = [self.tokenizer.cut(text) for text in ("a cat", "two dogs in the snow", "rain")]
            batches = [self.padded(some, max(map(len, some))) for some in (texts[:2], texts[2:])]
            self._texts = traced(self.text_tower, self._model, *batches)

    def padded(self, texts: Sequence[Tokens], length: int) -> torch.Tensor:
        """Tokenised texts as one batch on the host (n, length), int64. For many threads."""
        batch = self._on_host((len(texts), length), torch.int64).fill_(self.tokenizer.pad)
        for row, tokens in zip(batch.numpy(), texts, strict=True):
            row[: len(tokens)] = tokens
        return batch


def load(spec: ModelSpec, cache_dir: Path | None) -> tuple[Any, str]:
    """Load the open_clip model of a source.

    Returns:
        The model, on the CPU in fp32, and the name by which open_clip finds its tokenizer.

    Raises:
        RuntimeError: open_clip knows no such architecture or pretrained tag.
        FileNotFoundError: the folder has no configuration or no weights.
    """
    source = spec.source
    if source.startswith(SHIPPED):
        source = f"local-dir:{CHECKPOINTS / source.removeprefix(SHIPPED)}"
    cache = str(cache_dir) if cache_dir else None
    if source.startswith(("local-dir:", "hf-hub:")):
        return open_clip.create_model(source, cache_dir=cache, require_pretrained=True), source
    architecture, _, tag = source.partition("/")
    if tag == RANDOM:
        torch.manual_seed(0)
        return open_clip.create_model(architecture, pretrained=None, load_weights=False), architecture
    model = open_clip.create_model(architecture, pretrained=tag, cache_dir=cache, require_pretrained=True)
    return model, architecture


def reason(spec: ModelSpec, error: Exception) -> str:
    """Why a model was not loaded, in a line that says what to do where that is known."""
    source = spec.source
    if source.startswith("local-dir:"):
        folder = Path(source.removeprefix("local-dir:"))
        if not folder.is_dir():
            return f"there is no folder {folder}"
        if not (folder / "open_clip_config.json").is_file():
            return f"{folder} has no open_clip_config.json"
        if not any(path.suffix in WEIGHTS for path in folder.iterdir()):
            return f"{folder} has no weights (open_clip_model.safetensors)"
    elif not source.startswith(("hf-hub:", SHIPPED)):
        name, _, tag = source.partition("/")
        known = open_clip.list_models()
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean {near[0]}?" if near else "see open_clip.list_models()"
            return f"open_clip has no architecture {name!r}: {meant}"
        tags = open_clip.list_pretrained_tags_by_model(name)
        if tag != RANDOM and tag not in tags and not Path(tag).exists():
            return f"{name} has no weights {tag!r}: use one of {', '.join(tags) or RANDOM}"
    if source.startswith("hf-hub:") and "could not be loaded" in str(error):
        return "its weights could not be fetched: is the hub reachable, and does HF_TOKEN allow the repository?"
    if isinstance(error, ModuleNotFoundError) and error.name in HUGGING_FACE:
        return f"its texts need {error.name}: pip install 'clip-queue[hf]'"
    said = " ".join(line.strip() for line in str(error).strip().splitlines()[:3])
    return f"{type(error).__name__}: {said[:400]}"


def cannot_load(spec: ModelSpec, why: str) -> CannotWork:
    return CannotWork(f"CLIP_QUEUE_MODELS: {spec.name}={spec.source} cannot be loaded: {why}")


def checked(config: dict[str, Any]) -> PreprocessCfg:
    """A preprocessing that :class:`ClipModel` can do. Raises :class:`ValueError`: it cannot."""
    if (mode := config.get("mode", "RGB")) != "RGB":
        raise ValueError(f"preprocess_cfg's mode {mode!r} is not supported: RGB is")
    out = PreprocessCfg(**config)
    for name, values in (("mean", out.mean), ("std", out.std)):
        numbers = np.asarray(values)
        right = numbers.shape == (3,) and numbers.dtype.kind in "fi" and np.isfinite(numbers).all()
        if not right or (name == "std" and (numbers <= 0).any()):
            raise ValueError(f"preprocess_cfg's {name} is not three numbers" + " above 0" * (name == "std"))
    return out


def normalises(model: Any) -> bool:
    """Whether the model's features are unit vectors unless it is told otherwise, as CoCa's."""
    parameter = inspect.signature(model.encode_image).parameters.get("normalize")
    return parameter is not None and parameter.default is True


def context_length(model: Any) -> int:
    """The most tokens of a text that a model takes."""
    return int(getattr(model, "context_length", None) or model.text.context_length)


def logit_scale(model: Any) -> float | None:
    """What the model was trained to multiply cosines with, where its architecture says so."""
    scale = getattr(model, "logit_scale", None)
    return None if scale is None else round(float(scale.detach().exp()), 4)


def architecture(name: str) -> Any:
    """What the weights do not show: heads, activation, mask, pooling.

    It is the configuration of an architecture; for a repository of the hub, which has one configuration, its name.
    """
    return name if name.startswith("hf-hub:") else open_clip.get_model_config(name)


def fingerprint(model: Any, architecture: Any, config: PreprocessCfg, how: list[str | int]) -> str:
    """A digest, 16 hex digits, of all that determines a vector.

    That is the architecture, the weights as loaded, the preprocessing, and ``how`` they are used: precision, JPEG
    draft, resizing.
    """
    digest = hashlib.blake2b(digest_size=8)
    about = [architecture, asdict(config), *how]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def public_source(source: str) -> str:
    """A source as clients may see it: of a local path, the last part only."""
    if source.startswith("local-dir:"):
        return "local-dir:" + Path(source.removeprefix("local-dir:")).name
    return source
