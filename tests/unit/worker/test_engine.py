"""The inference engine with a model that computes nothing: what recipients get, and places that are released."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.shared.lane import Lane
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Vector
from clip_queue.worker.inference.engine import InferenceEngine
from tests.harness import wait_for
from tests.images import encoded
from tests.unit.worker.models import LOAD, MODEL, WAIT, Model

WHITE = encoded(Image.new("RGB", (2, 2), "white"))
LANE = Lane.BACKGROUND


class Recipient:
    """Keeps what the engine gives it."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.got: list[object] = []
        self.timings: dict[str, float] = {}
        self._over = threading.Event()

    def drop(self) -> None:
        self._get("dropped")

    def resolve(self, features: Vector, timings: dict[str, float]) -> None:
        self.timings = timings
        self._get(features.tolist())

    def fail(self, error: ClipError) -> None:
        self._get(error)

    def _get(self, what: object) -> None:
        self.got.append(what)
        self._over.set()

    def wait(self) -> object:
        """What it got, exactly once."""
        assert self._over.wait(WAIT)
        (only,) = self.got
        return only


@pytest.fixture
def engine() -> Iterator[InferenceEngine]:
    it = InferenceEngine(Settings(device="cpu", batch_size=2, decode_threads=1), load_model=LOAD)
    it.start()
    yield it
    it.stop()


def model_of(engine: InferenceEngine) -> Model:
    model = engine.models[MODEL]
    assert isinstance(model, Model)
    return model


def embed(engine: InferenceEngine, item: bytes | str, *, gone: bool = False) -> Recipient:
    recipient = Recipient(gone=gone)
    assert engine.acquire(LANE, 1)
    engine.embed(engine.models[MODEL], LANE, item, recipient)
    return recipient


def free_places(engine: InferenceEngine) -> int:
    """How many places of the lane are free."""
    taken = 0
    while engine.acquire(LANE, 0.001):
        taken += 1
    for _ in range(taken):
        engine.release(LANE)
    return taken


@pytest.fixture(autouse=True)
def balanced(engine: InferenceEngine) -> Iterator[None]:
    """At the end of each test all places are free again."""
    yield
    assert engine.batcher.stop(WAIT)
    assert free_places(engine) == engine.capacity


def test_a_place_is_for_one_item_and_a_lane_has_only_so_many(engine: InferenceEngine) -> None:
    assert engine.capacity == 8
    for _ in range(engine.capacity):
        assert engine.acquire(LANE, 0)
    assert not engine.acquire(LANE, 0.01)
    assert engine.acquire(Lane.INTERACTIVE, 0), "the lanes do not share their places"
    engine.release(Lane.INTERACTIVE)
    for _ in range(engine.capacity):
        engine.release(LANE)
    with pytest.raises(ValueError, match="released too many times"):
        engine.release(LANE)


def test_on_a_cpu_an_answer_waits_for_no_pass_of_another_lane(engine: InferenceEngine) -> None:
    model_of(engine).gate.clear()
    beside = embed(engine, "a text of a background job")
    wait_for(lambda: model_of(engine).batches, WAIT)
    asked = Recipient()
    assert engine.acquire(Lane.INTERACTIVE, 1)
    engine.embed(engine.models[MODEL], Lane.INTERACTIVE, "asked", asked)
    wait_for(lambda: len(model_of(engine).batches) == 2, WAIT)
    model_of(engine).gate.set()
    assert beside.wait()
    assert asked.wait()


# Images


def test_an_image_is_decoded_and_embedded(engine: InferenceEngine) -> None:
    recipient = embed(engine, WHITE)
    assert recipient.wait() == [2 * 2 * 3 * 255]
    assert recipient.timings.keys() == {"prepare", "wait", "forward"}


@pytest.mark.parametrize("data", [b"", b"no image", WHITE[:40]])
def test_an_image_that_cannot_be_decoded_fails_and_nothing_is_computed(engine: InferenceEngine, data: bytes) -> None:
    assert isinstance(embed(engine, data).wait(), BadImage)
    assert model_of(engine).images == 0


def test_an_image_whose_recipient_is_gone_is_dropped_before_it_is_decoded(engine: InferenceEngine) -> None:
    assert embed(engine, b"this would fail if it were decoded", gone=True).wait() == "dropped"
    assert model_of(engine).images == 0


def test_an_image_whose_recipient_goes_while_it_waits_is_dropped_before_its_pass(engine: InferenceEngine) -> None:
    model = model_of(engine)
    model.gate.clear()
    first = embed(engine, "occupies the model")
    waiting = embed(engine, WHITE)
    embed(engine, b"").wait()  # one thread decodes in order: so the image waits for its pass by now
    waiting.gone = True
    model.gate.set()
    assert waiting.wait() == "dropped"
    assert first.wait() == [len("occupies the model")]
    assert model.images == 0


def test_an_error_of_the_model_reaches_the_recipient(engine: InferenceEngine) -> None:
    def broken(images: object) -> None:
        raise ZeroDivisionError("inside")

    engine.models[MODEL].embed_images = broken  # type: ignore[method-assign,assignment]
    error = embed(engine, WHITE).wait()
    assert isinstance(error, ClipError)
    assert error.message == "The model failed on this item (ZeroDivisionError)."


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_vector_that_is_not_finite_is_an_error_of_its_item_alone(engine: InferenceEngine, value: float) -> None:
    """As of fp16, whose largest number is 65,504."""
    model = model_of(engine)
    model.gate.clear()

    def overflowing(texts: Sequence[list[str]]) -> Any:
        model.gate.wait(WAIT)
        rows = np.array([[value if len(text) == 3 else len(text)] for text in texts], dtype=np.float32)
        return SimpleNamespace(result=lambda: rows)

    model.embed_texts = overflowing  # type: ignore[method-assign]
    first = embed(engine, "occupies the model")
    bad, good = embed(engine, "bad"), embed(engine, "good")
    model.gate.set()
    assert first.wait() == [len("occupies the model")]
    assert good.wait() == [4]
    error = bad.wait()
    assert isinstance(error, ClipError)
    assert error.message.startswith("The model's vector of this item is not finite")
    assert "Set CLIP_QUEUE_PRECISION=fp32" in error.message


# Texts


def test_a_text_is_computed_once_and_then_comes_from_the_cache(engine: InferenceEngine) -> None:
    assert embed(engine, "abc").wait() == [3]
    again = embed(engine, "abc")
    assert again.wait() == [3]
    assert (again.timings["wait"], again.timings["forward"]) == (0, 0)
    assert model_of(engine).batches == [[3]]


def test_the_cache_tells_an_owner_nothing_of_the_texts_of_others(engine: InferenceEngine) -> None:
    for owner, passes in (("a", 1), ("b", 2), ("a", 2), ("b", 2)):
        recipient = Recipient()
        assert engine.acquire(LANE, 1)
        engine.embed(engine.models[MODEL], LANE, "secret", recipient, owner)
        assert recipient.wait() == [6.0]
        assert len(model_of(engine).batches) == passes, (owner, passes)


def test_features_in_the_cache_do_not_keep_their_batch_in_memory(engine: InferenceEngine) -> None:
    got: list[Vector] = []

    class Keeping(Recipient):
        def resolve(self, features: Vector, timings: dict[str, float]) -> None:
            got.append(features)
            super().resolve(features, timings)

    recipient = Keeping()
    assert engine.acquire(LANE, 1)
    engine.embed(engine.models[MODEL], LANE, "abc", recipient)
    recipient.wait()
    assert got[0].base is None
    assert got[0].dtype == np.float32


def test_without_a_cache_a_text_is_computed_again() -> None:
    engine = InferenceEngine(Settings(device="cpu", text_cache_size=0), load_model=LOAD)
    engine.start()
    for _ in range(2):
        assert embed(engine, "abc").wait() == [3]
    assert model_of(engine).batches == [[3], [3]]
    engine.stop()


def test_an_error_of_the_tokenizer_fails_the_text(engine: InferenceEngine, caplog: pytest.LogCaptureFixture) -> None:
    error = embed(engine, "choke").wait()
    assert isinstance(error, ClipError)
    assert error.message == "The text could not be tokenised (LookupError)."
    assert "a text could not be tokenised" in caplog.text


def test_a_text_that_is_dropped_is_not_cached(engine: InferenceEngine) -> None:
    assert embed(engine, "abc", gone=True).wait() == "dropped"
    assert embed(engine, "abc").wait() == [3]
    assert model_of(engine).batches == [[3]]


# Models and settings


def test_the_models_are_logged_with_their_notices(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine = InferenceEngine(Settings(device="cpu"), load_model=LOAD)
    engine.start()
    engine.stop()
    assert "serving emoji-mini (none, fp32, cpu)" in caplog.text
    assert "emoji-mini knows emoji pictures by their names and nothing of photographs" in caplog.text


def test_the_batch_sizes_of_a_cpu_and_those_of_the_settings() -> None:
    assert InferenceEngine(Settings(device="cpu"), load_model=LOAD).capacity == 4 * 32
    assert InferenceEngine(Settings(device="cpu", batch_size=5), load_model=LOAD).capacity == 4 * 5
