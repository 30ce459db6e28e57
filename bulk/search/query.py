"""The query: a text or an image as a vector of the model that made an output's vectors."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from clip_queue.shared.errors import BadInput, check_text_length
from clip_queue.shared.models import CATALOGUE, ModelInfo, ModelSpec, parse_model, parse_models
from clip_queue.shared.settings import Settings
from clip_queue.shared.startup import CannotWork
from clip_queue.shared.vectors import Vector


def embed_query(
    info: ModelInfo, text: str | None, image: bytes | None, model: str | None, settings: Settings
) -> Vector:
    """The unit vector (dimension,), float32, of a text or of an encoded image, computed in this process.

    ``info`` is the output's model; its precision, resizing and JPEG draft are used, whatever the settings say.

    Raises:
        BadInput: not exactly one of text and image, a query over the limits, not an image, a model that cannot be
            loaded, or one that is not the output's.
    """
    if (text is None) == (image is None):
        raise BadInput("search for a text or for an image: exactly one of them")
    if text is not None:
        check_text_length(text, settings.max_text_chars)
    spec = spec_of(info, model, settings)
    from clip_queue.worker.inference.clip_model import ClipModel  # torch: seconds, and nothing above needs it
    from clip_queue.worker.inference.decode import preprocessed
    from clip_queue.worker.inference.decode_helpers import DecodeHelpers
    from clip_queue.worker.inference.image_limits import Limits

    try:
        same = {name: getattr(info, name) for name in ("precision", "resize", "jpeg_draft")}
        clip = ClipModel(spec, settings.model_copy(update=same))
    except CannotWork as error:
        raise BadInput(str(error).replace("CLIP_QUEUE_MODELS: ", "the model ")) from error
    if clip.fingerprint != info.fingerprint:
        raise BadInput(
            f"the vectors are of {info.name} ({info.source}), fingerprint {info.fingerprint}; what was loaded here, "
            f"{spec.name} ({spec.source}), is {clip.fingerprint}: other weights or preprocessing, so their cosines "
            "would mean nothing. Name the model that made them with --model NAME=SOURCE"
        )
    if text is not None:
        return unit_query(clip.embed_texts([clip.tokenizer(text)]).result()[0])
    assert image is not None
    limits = Limits(settings.max_image_bytes, settings.max_image_pixels, settings.max_image_work)
    with closing(DecodeHelpers(1, limits, settings.decode_timeout)) as helpers:  # one that overstays is ended
        pixels = preprocessed(helpers.to_rgb(image, clip.draft), clip.preprocess)
    return unit_query(clip.embed_images([pixels]).result()[0])


def spec_of(info: ModelInfo, model: str | None, settings: Settings) -> ModelSpec:
    """Where the output's model is loaded from: ``model`` if it is given, else the manifest's source.

    Raises:
        BadInput: the model was loaded from a folder, of which a manifest has the last part only; or ``model`` is no
        model.
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


def unit_query(features: Vector) -> Vector:
    """A query's features with length 1. Raises :class:`BadInput` where they have no direction."""
    length = np.linalg.norm(features.astype(np.float64))
    if not np.isfinite(length) or length == 0:
        raise BadInput("the query's vector has no direction: the model made zeros or NaN of it")
    return (features / length).astype(np.float32)
