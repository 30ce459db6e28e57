"""``clip_queue.worker.app`` with forward passes that fail as a test says by :mod:`tests.faults`."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_queue.worker.inference import engine
from clip_queue.worker.inference.clip_model import ClipModel, PendingFeatures
from clip_queue.worker.inference.pass_threads import TEXT_TOKENS
from clip_queue.worker.inference.text import Tokenizer

Embed = Callable[[ClipModel, Sequence[Any]], PendingFeatures]

FOLDER = Path(os.environ["CLIP_QUEUE_TEST_FAULTS"])


def once(name: str) -> bool:
    """Whether a fault that happens once is due. It happens in the process that removes its file."""
    try:
        (FOLDER / name).unlink()
    except FileNotFoundError:
        return False
    return True


def content(name: str) -> str:
    """The content of a fault's file, or nothing."""
    try:
        return (FOLDER / name).read_text()
    except FileNotFoundError:
        return ""


def faulty(embed: Embed, words: Callable[[ClipModel, Sequence[Any]], list[str]]) -> Embed:
    """A forward pass with faults. ``words`` returns the texts of its items."""

    def wrapped(self: ClipModel, items: Sequence[Any]) -> PendingFeatures:
        texts = words(self, items)
        with (FOLDER / "passes").open("a") as log:
            log.write(json.dumps({"pid": os.getpid(), "items": texts}) + "\n")
        if (poison := content("poison")) and poison in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if once("die"):
            raise SystemExit("injected: the batcher's thread ends")
        if once("hang"):
            threading.Event().wait()
        while (FOLDER / "hold").exists():
            time.sleep(0.02)
        time.sleep(float(content("delay") or 0))
        return embed(self, items)

    return wrapped


def hanging(make: Callable[..., Any]) -> Callable[..., Any]:
    """What makes pixels of an image, in a thread or of a helper's image; it does not end while the test says so."""

    def hangs(*given: Any) -> Any:
        while (FOLDER / "hang-images").exists():
            time.sleep(0.05)
        return make(*given)

    return hangs


# The texts, by their tokens. Those of ones are no texts: a worker measures its passes with them when it starts.
SENT: dict[bytes, str] = {np.ones(length, np.int64).tobytes(): "" for length in range(1, TEXT_TOKENS + 1)}


def remembering(tokenize: Callable[[Tokenizer, str], NDArray[np.int64]]) -> Callable[..., NDArray[np.int64]]:
    def remembered(self: Tokenizer, text: str) -> NDArray[np.int64]:
        tokens = tokenize(self, text)
        SENT[tokens.tobytes()] = text
        return tokens

    return remembered


def texts_of(_: ClipModel, items: Sequence[Any]) -> list[str]:
    return [SENT[tokens.tobytes()] for tokens in items]


Tokenizer.__call__ = remembering(Tokenizer.__call__)  # type: ignore[method-assign]
Tokenizer.cut = remembering(Tokenizer.cut)  # type: ignore[method-assign]
engine.decoded = hanging(engine.decoded)  # type: ignore[attr-defined]
engine.preprocessed = hanging(engine.preprocessed)  # type: ignore[attr-defined]
ClipModel.embed_texts = faulty(ClipModel.embed_texts, texts_of)  # type: ignore[method-assign,assignment]
ClipModel.embed_images = faulty(ClipModel.embed_images, lambda _, items: ["image"] * len(items))  # type: ignore[method-assign,assignment]

from clip_queue.worker.app import app  # noqa: E402

__all__ = ["app"]
