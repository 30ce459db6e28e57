"""A text or a picture as a vector of the model that an output's vectors are of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clip_queue.shared.errors import BadInput, TextTooLong
from clip_queue.shared.models import CATALOGUE, ModelSpec, parse_model, parse_models
from clip_queue.shared.settings import Settings
from clip_queue.shared.workers import ModelInfo

Vector = NDArray[np.float32]  # (dimension,)


def embed(info: ModelInfo, text: str | None, image: bytes | None, model: str | None, settings: Settings) -> Vector:
    """The features (dimension,) of a text or of an encoded picture, computed in this process.

    ``info`` is the output's model; precision, resizing and JPEG draft are its, whatever the settings say.

    Raises:
        BadInput: not exactly one of text and picture, one over the limits or not a picture, a model that cannot be
            loaded, or one that is not the output's.
    """
    if (text is None) == (image is None):
        raise BadInput("search for a text or for a picture: exactly one of them")
    if text is not None and len(text) > settings.max_text_chars:
        raise TextTooLong(
            "Text input is too long for the model context length: "
            f"{len(text)} characters, {settings.max_text_chars} at most."
        )
    spec = spec_of(info, model, settings)
    from clip_queue.worker.inference.clip_model import Clip  # torch: seconds, and nothing above needs it
    from clip_queue.worker.inference.decode import decode

    try:
        same = {name: getattr(info, name) for name in ("precision", "resize", "jpeg_draft")}
        clip = Clip(spec, settings.model_copy(update=same))
    except Exception as error:  # open_clip's, torch's and the hub's own: of many kinds
        raise BadInput(f"the model {spec.name}={spec.source} cannot be loaded: {error}") from error
    if clip.fingerprint != info.fingerprint:
        raise BadInput(
            f"the vectors are of {info.name} ({info.source}), fingerprint {info.fingerprint}; what was loaded here, "
            f"{spec.name} ({spec.source}), is {clip.fingerprint}: other weights or preprocessing, so their cosines "
            "would mean nothing. Name the model that made them with --model NAME=SOURCE"
        )
    if text is not None:
        return unit(clip.embed_texts([clip.tokenizer(text)]).result()[0])
    assert image is not None
    limits = {"max_bytes": settings.max_image_bytes, "max_pixels": settings.max_image_pixels, "draft": clip.draft}
    return unit(clip.embed_images([decode(image, clip.crop, **limits)]).result()[0])


def spec_of(info: ModelInfo, model: str | None, settings: Settings) -> ModelSpec:
    """Where the output's model is loaded from: as ``model`` says, else as the manifest has it.

    Raises:
        BadInput: it was loaded from a folder, of which a manifest has the last part only; or nothing of that kind.
    """
    try:
        served = parse_models(settings.models)
        if model is not None:
            return served.get(model) or parse_model(model)
        if info.source.startswith("local-dir:"):
            if (spec := served.get(info.name)) and spec.source.startswith("local-dir:"):
                return spec
            folder = info.source.removeprefix("local-dir:")
            raise BadInput(
                f"the vectors are of {info.name}, loaded from a folder {folder!r}: say where it is, "
                f"with --model {info.name}=local-dir:/PATH/{folder}"
            )
        shipped = {spec.source: spec for spec in CATALOGUE.values()}
        return shipped.get(info.source) or parse_model(f"{info.name}={info.source}")
    except ValueError as error:
        raise BadInput(str(error)) from error


def unit(vector: Vector) -> Vector:
    """The vector with length 1. Raises :class:`BadInput` where it has no direction."""
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(length) or length == 0:
        raise BadInput("the query's vector has no direction: the model made zeros or NaN of it")
    return (vector / length).astype(np.float32)
