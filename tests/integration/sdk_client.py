"""Run in an environment that has the unmodified inference-sdk: ``python sdk_client.py URL FOLDER KEY WRONG_KEY``.

Calls each CLIP method of the SDK, in both forms, with what its signature allows, and prints what came back as JSON.
It imports nothing of this project. ``FOLDER`` holds ``a.png`` and ``b.png``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from inference_sdk import InferenceConfiguration, InferenceHTTPClient
from PIL import Image


def outcome(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call returns, or what it raises, with its status and the server's message."""
    try:
        result = method(*args, **kwargs)
        result = asyncio.run(result) if asyncio.iscoroutine(result) else result
        return result.to_dict() if hasattr(result, "to_dict") else result
    except Exception as error:
        status, message = getattr(error, "status_code", None), getattr(error, "api_message", None)
        return {"raised": type(error).__name__, "status": status, "message": message}


def main(url: str, folder: Path, key: str, wrong_key: str) -> dict[str, Any]:
    client = InferenceHTTPClient(api_url=url, api_key=key)
    wrong = InferenceHTTPClient(api_url=url, api_key=wrong_key)
    none = InferenceHTTPClient(api_url=url)
    a, b = str(folder / "a.png"), str(folder / "b.png")
    pil = Image.open(a)
    bgr = np.ascontiguousarray(np.asarray(pil)[:, :, ::-1])  # the SDK takes arrays in OpenCV's order
    words, names = ["a cat", "red heart"], {"cat": "a cat", "love": "red heart"}
    calls: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
        "one file": ("get_clip_image_embeddings", (a,), {}),
        "two files": ("get_clip_image_embeddings", ([a, b],), {}),
        "pil": ("get_clip_image_embeddings", (pil,), {}),
        "array": ("get_clip_image_embeddings", (bgr,), {}),
        "mixed": ("get_clip_image_embeddings", ([bgr, b, pil],), {}),
        "named model": ("get_clip_image_embeddings", (a,), {"clip_version": "emoji-mini"}),
        "one text": ("get_clip_text_embeddings", (words[0],), {}),
        "two texts": ("get_clip_text_embeddings", (words,), {}),
        "text of a named model": ("get_clip_text_embeddings", (words[0],), {"clip_version": "emoji-mini"}),
        "a thousand texts": ("get_clip_text_embeddings", ([f"thing {i}" for i in range(1000)],), {}),
        "list models": ("list_loaded_models", (), {}),
        "load a model": ("load_model", ("clip/emoji-mini",), {}),
        "unload a model": ("unload_model", ("clip/emoji-mini",), {}),
        "unload all models": ("unload_all_models", (), {}),
        "image to texts": ("clip_compare", (a, words), {}),
        "image to one text": ("clip_compare", (a, words[0]), {}),
        "image to named texts": ("clip_compare", (a, names), {}),
        "text to images": ("clip_compare", (words[0], [a, b]), {"subject_type": "text", "prompt_type": "image"}),
        "image to images": ("clip_compare", (pil, [a, b]), {"prompt_type": "image"}),
        "image to one image": ("clip_compare", (a, b), {"prompt_type": "image"}),
        "text to texts": ("clip_compare", (words[0], words), {"subject_type": "text", "clip_version": "emoji-mini"}),
        "unknown model": ("get_clip_text_embeddings", (words[0],), {"clip_version": "of-nobody"}),
        "too many prompts": ("clip_compare", (a, words * 5), {}),
        "no image": ("get_clip_image_embeddings", ("bm8gcGljdHVyZQ==",), {}),
    }
    seen: dict[str, Any] = {}
    for name, (method, args, kwargs) in calls.items():
        seen[name] = outcome(getattr(client, method), *args, **kwargs)
        seen[f"{name}, async"] = outcome(getattr(client, f"{method}_async"), *args, **kwargs)
    for who, other in (("wrong key", wrong), ("no key", none)):
        seen[f"{who}: image"] = outcome(other.get_clip_image_embeddings, a)
        seen[f"{who}: text"] = outcome(other.get_clip_text_embeddings, words)
        seen[f"{who}: compare"] = outcome(other.clip_compare, a, words)
        seen[f"{who}: text, async"] = outcome(other.get_clip_text_embeddings_async, words)
    client.configure(InferenceConfiguration(max_batch_size=3))  # by default each image is a request of its own
    seen["three in one request"] = outcome(client.get_clip_image_embeddings, [a, b, a])
    return {"version": version("inference-sdk"), **seen}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:5])))
