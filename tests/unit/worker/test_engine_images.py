"""The engine with a model of no weights: where an image is decoded, and what is not decoded at all."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from clip_queue.shared.errors import ClipError
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.decode_helpers import DecodeHelpers
from clip_queue.worker.inference.engine import InferenceEngine
from clip_queue.worker.inference.image_limits import Limits
from tests.images import noise_image
from tests.unit.worker.test_decode_helpers import STUCK

TIMEOUT = 2.0


class Waiting:
    """A recipient that remembers what it got."""

    def __init__(self) -> None:
        self.gone = False
        self.dropped = False
        self.answer: Any = None
        self.done = threading.Event()

    def drop(self) -> None:
        self.dropped = True
        self.done.set()

    def resolve(self, features: Any, timings: dict[str, float]) -> None:
        self.answer = features
        self.done.set()

    def fail(self, error: ClipError) -> None:
        self.answer = error
        self.done.set()


def embed_images(images: Any) -> Any:
    return SimpleNamespace(result=lambda: np.stack([np.float32([image.shape[1], image.shape[0]]) for image in images]))


MODEL: Any = SimpleNamespace(
    preprocess=np.asarray,
    draft=0,
    device=SimpleNamespace(type="none"),
    embed_images=embed_images,
    info=SimpleNamespace(name="m", source="s"),
    precision="",
)


@pytest.fixture
def engine() -> Iterator[InferenceEngine]:
    settings = Settings(device="cpu", decode_threads=1, decode_processes=1, decode_timeout=TIMEOUT)
    helpers = DecodeHelpers(1, Limits(1 << 24, 50_000_000), TIMEOUT, command=(sys.executable, "-c", STUCK))
    engine = InferenceEngine(settings, load_model=lambda spec, settings: MODEL, helpers=helpers)
    engine.start()
    yield engine
    engine.stop()


def embed(engine: InferenceEngine, data: bytes) -> Waiting:
    recipient = Waiting()
    assert engine.acquire(Lane.INTERACTIVE, 1)
    engine.embed(MODEL, Lane.INTERACTIVE, data, recipient)
    return recipient


def test_an_image_has_the_same_pixels_wherever_it_is_decoded(engine: InferenceEngine) -> None:
    for format in ("PNG", "TIFF", "BMP"):
        recipient = embed(engine, noise_image(format=format))
        assert recipient.done.wait(10)
        np.testing.assert_array_equal(recipient.answer, [96, 80])
    assert engine.decode(MODEL, Lane.BULK, noise_image(format="BMP"), lambda: False).result(60).shape == (80, 96, 3)


def test_a_lone_image_is_decoded_by_the_thread_that_brings_it(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    model = SimpleNamespace(**vars(MODEL))
    model.preprocess = lambda image: seen.append(threading.current_thread().name) or np.asarray(image)
    for lone in (True, False):
        recipient = Waiting()
        assert engine.acquire(Lane.INTERACTIVE, 1)
        engine.embed(model, Lane.INTERACTIVE, noise_image(), recipient, lone=lone)
        assert recipient.done.wait(10)
        np.testing.assert_array_equal(recipient.answer, [96, 80])
    assert seen == [threading.current_thread().name, "decode-0"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_a_helper_does_not_give_way_as_decoding_threads_do(engine: InferenceEngine) -> None:
    """It has a deadline by the clock."""
    before = {child.pid for child in psutil.Process().children()}
    assert embed(engine, noise_image(format="TIFF")).done.wait(10)
    (helper,) = [child for child in psutil.Process().children() if child.pid not in before]
    assert helper.nice() == min(psutil.Process().nice() + 5, 19)


def test_a_decode_that_hangs_holds_up_no_other_and_what_nobody_waits_for_is_not_decoded(
    engine: InferenceEngine,
) -> None:
    assert embed(engine, noise_image(format="BMP")).done.wait(10)
    began = time.monotonic()
    hanging, left = embed(engine, b"hang"), embed(engine, b"die")
    left.gone = True
    good = embed(engine, noise_image())
    assert good.done.wait(1)
    np.testing.assert_array_equal(good.answer, [96, 80])
    assert hanging.done.wait(TIMEOUT + 3)
    assert "setting decode_timeout" in str(hanging.answer)
    assert left.done.wait(1)
    assert left.dropped
    assert left.answer is None
    after = embed(engine, noise_image(format="BMP"))
    assert after.done.wait(10)
    np.testing.assert_array_equal(after.answer, [96, 80])
    assert time.monotonic() - began < 20
    for _ in range(engine.capacity):  # every place was given back
        assert engine.acquire(Lane.INTERACTIVE, 0)


def test_a_shards_image_that_hangs_in_a_helper_holds_up_no_other_of_it(
    engine: InferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, image = threading.Event(), Image.new("RGB", (96, 80))
    monkeypatch.setattr(engine.helpers, "to_rgb", lambda data, draft: image if gate.wait(60) else None)
    slow = [engine.decode(MODEL, Lane.BULK, noise_image(format="BMP"), lambda: False) for _ in range(2)]
    unwanted = engine.decode(MODEL, Lane.BULK, noise_image(), lambda: True)
    try:
        assert engine.decode(MODEL, Lane.BULK, noise_image(), lambda: False).result(30).shape == (80, 96, 3)
        assert not any(decoding.done() for decoding in slow)
        assert unwanted.cancelled()
    finally:
        gate.set()
    assert [decoding.result(30).shape for decoding in slow] == [(80, 96, 3)] * 2
