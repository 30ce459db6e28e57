"""The CUDA pipeline on a stand-in device: overlap, order, too little memory, a device that breaks, one that hangs.

What is tested is the worker's own code (:mod:`tests.unit.worker.stand_in_gpu`), on device 1 while device 0 is current.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from clip_queue.shared.lane import Lane
from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.worker.heartbeat import Heartbeat
from clip_queue.worker.inference.batcher import Batcher
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.engine import InferenceEngine
from clip_queue.worker.inference.pass_threads import PassThreads
from tests.harness import wait_for
from tests.images import encoded
from tests.unit.worker.stand_in_gpu import AcceleratorError, Patched, StandInGpu

WAIT = 20.0  # seconds; only a bug lets them pass
WHITE = encoded(Image.new("RGB", (40, 30), "white"))
WORDS = ("a dog", "a much longer text of a cat", "sun", "the moon over the sea")


class Ended(BaseException):
    """The end of the process."""


class Item:
    """An item of the batcher that keeps its features."""

    lane, size, dropped = Lane.INTERACTIVE, 1, False

    def __init__(self, payload: Any, forward: Any) -> None:
        self.payload, self.forward = payload, forward
        self.got: Any = None
        self.over = threading.Event()

    def started(self) -> None: ...
    def drop(self) -> None: ...
    def resolve(self, features: np.ndarray) -> None:
        self.got = features.copy()
        self.over.set()

    def fail(self, error: Exception) -> None:
        self.got = error
        self.over.set()

    def wait(self) -> Any:
        assert self.over.wait(WAIT)
        return self.got


@pytest.fixture(scope="module")
def plain() -> ClipModel:
    """The same model on the host."""
    return ClipModel(parse_model("emoji-mini"), Settings(device="cpu", precision="fp32"))


@pytest.fixture(scope="module")
def both(plain: ClipModel) -> Iterator[tuple[StandInGpu, ClipModel]]:
    with pytest.MonkeyPatch.context() as patch, Patched(patch) as gpu:
        yield gpu, gpu.model(precision="fp32")


@pytest.fixture
def gpu(both: tuple[StandInGpu, ClipModel]) -> Iterator[StandInGpu]:
    gpu = both[0]
    gpu.waits.clear()
    yield gpu
    gpu.memory, gpu.poison = float("inf"), lambda copied: False
    gpu.repair()


@pytest.fixture
def model(both: tuple[StandInGpu, ClipModel]) -> ClipModel:
    return both[1]


@pytest.fixture
def batcher(gpu: StandInGpu) -> Iterator[Batcher]:
    it = Batcher(dict.fromkeys(Lane, 8), capacity=100, fatal=end, depth=1)
    yield it
    gpu.stream.resume()
    assert it.stop(WAIT)


def end(error: BaseException) -> None:
    raise Ended from error


def images(plain: ClipModel, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(count)
    return [random.integers(0, 255, (*plain.image_size, 3), dtype=np.uint8) for _ in range(count)]


def near(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def put(to: Batcher, items: list[Item]) -> list[Item]:
    """Items that all wait by the time that the first is taken."""
    for item in items:
        to.put(cast(Any, item))
    to.start()
    return items


def test_a_pass_on_the_device_gives_what_one_on_the_host_gives(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel
) -> None:
    some, texts = images(plain, 3), [plain.tokenizer(text) for text in WORDS]
    near(model.embed_images(some).result(), plain.embed_images(some).result())
    near(model.embed_texts(texts).result(), plain.embed_texts(texts).result())
    near(model.embed_stack(model.stack(some)).result(), plain.embed_images(some).result())
    assert gpu.waits == [], "all copies are from and to pinned memory, and nothing else waits for the device"


def test_launching_waits_for_nothing_and_a_result_for_its_own_pass_only(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel
) -> None:
    gpu.stream.pause()
    some, texts = images(plain, 2), [plain.tokenizer(text) for text in WORDS]
    first, second = model.embed_images(some), model.embed_texts(texts)
    assert gpu.waits == []
    gpu.stream.resume(1)
    near(first.result(), plain.embed_images(some).result())
    gpu.stream.resume()
    near(second.result(), plain.embed_texts(texts).result())


def test_what_the_caller_does_with_its_images_after_the_launch_changes_nothing(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel
) -> None:
    some, texts = images(plain, 2), [plain.tokenizer(text).copy() for text in WORDS]
    wanted = plain.embed_images(some).result(), plain.embed_texts(texts).result()
    gpu.stream.pause()
    found = model.embed_images(some), model.embed_texts(texts)
    for array in (*some, *texts):
        array[:] = 0
    others = [model.embed_images(images(plain, 2)) for _ in range(3)]  # which would get freed host memory
    gpu.stream.resume()
    near(found[0].result(), wanted[0])
    near(found[1].result(), wanted[1])
    assert [other.result().shape for other in others] == [(2, model.dimension)] * 3


def test_the_next_pass_is_launched_before_the_last_is_collected_and_none_after_it(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel, batcher: Batcher
) -> None:
    gpu.stream.pause()
    some, before = images(plain, 24), gpu.copies
    items = put(batcher, [Item(image, model.embed_images) for image in some])
    wait_for(lambda: gpu.copies == before + 2, WAIT)
    assert not any(item.over.is_set() for item in items), "the device has done nothing yet"
    gpu.stream.resume(1)
    items[7].wait()
    wait_for(lambda: gpu.copies == before + 3, WAIT)
    assert not items[8].over.is_set()
    gpu.stream.resume()
    near([item.wait() for item in items], plain.embed_images(some).result())
    assert batcher.batches == 3


def test_each_item_of_mixed_passes_gets_its_own_features(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel, batcher: Batcher
) -> None:
    some, texts = images(plain, 20), [plain.tokenizer(f"{word} {n}") for n in range(5) for word in WORDS]
    pairs = zip(some, texts, strict=True)
    items = [i for image, text in pairs for i in (Item(image, model.embed_images), Item(text, model.embed_texts))]
    put(batcher, items)
    near([item.wait() for item in items[::2]], plain.embed_images(some).result())
    near([item.wait() for item in items[1::2]], plain.embed_texts(texts).result())


def test_too_large_a_batch_is_halved_and_its_memory_is_free_by_then(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel, batcher: Batcher
) -> None:
    some = images(plain, 8)
    gpu.peak = 0
    model.embed_images(some[:4]).result()
    gpu.memory = gpu.peak  # exactly as much as four images need
    items = put(batcher, [Item(image, model.embed_images) for image in some])
    near([item.wait() for item in items], plain.embed_images(some).result())
    assert batcher.batches == 3, "one that fails, two halves that fit"


def test_without_memory_for_one_item_it_fails_and_the_worker_goes_on(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel, batcher: Batcher
) -> None:
    gpu.memory = gpu.used
    items = put(batcher, [Item(image, model.embed_images) for image in images(plain, 2)])
    assert [type(item.wait()).__name__ for item in items] == ["OutOfMemoryError"] * 2
    gpu.memory = float("inf")
    batcher.put(cast(Any, again := Item(images(plain, 1)[0], model.embed_images)))
    assert again.wait().shape == (model.dimension,)


def test_a_device_that_breaks_ends_the_process_and_answers_nothing_wrong(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel
) -> None:
    ends: list[BaseException] = []

    def die(error: BaseException) -> None:
        ends.append(error)
        raise Ended

    gpu.stream.pause()
    broken = Batcher(dict.fromkeys(Lane, 2), capacity=100, fatal=die, depth=1)
    some = images(plain, 6)
    some[3][:] = 7
    gpu.poison = lambda copied: copied.dim() == 4 and bool((copied[1] == 7).all())
    thread_ends = threading.excepthook
    threading.excepthook = lambda args: None  # the end of the process, as here it is played
    try:
        items = put(broken, [Item(image, model.embed_images) for image in some])
        gpu.stream.resume()
        assert broken.stop(WAIT)
    finally:
        threading.excepthook = thread_ends
    assert type(ends[0]) is AcceleratorError
    near([item.wait() for item in items[:2]], plain.embed_images(some[:2]).result())
    assert not any(item.over.is_set() for item in items[2:])


def test_the_heartbeat_ends_a_worker_whose_device_hangs(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel, batcher: Batcher
) -> None:
    gpu.stream.pause()
    executor = SimpleNamespace(engine=SimpleNamespace(batcher=batcher))
    settings = Settings().model_copy(update={"forward_timeout": 0.05})
    heartbeat = Heartbeat(cast(Any, executor), settings, store=cast(Any, 1), fatal=end)
    items = put(batcher, [Item(image, model.embed_images) for image in images(plain, 16)])
    wait_for(lambda: batcher.busy_for() > 0.05, WAIT)
    with pytest.raises(Ended) as ended:
        heartbeat.step()
    assert isinstance(ended.value.__cause__, TimeoutError)
    gpu.stream.resume()
    assert all(item.wait() is not None for item in items)


def test_stopping_answers_what_is_in_flight_and_what_waits(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel, batcher: Batcher
) -> None:
    gpu.stream.pause()
    some, before = images(plain, 24), gpu.copies
    items = put(batcher, [Item(image, model.embed_images) for image in some])
    wait_for(lambda: gpu.copies == before + 2, WAIT)
    assert not batcher.stop(0.05), "two passes are in flight"
    gpu.stream.resume()
    assert batcher.stop(WAIT)
    near([item.wait() for item in items], plain.embed_images(some).result())


def test_the_engine_on_a_device(gpu: StandInGpu, model: ClipModel, plain: ClipModel) -> None:
    class Recipient:
        gone = False

        def __init__(self) -> None:
            self.got: Any = None
            self.over = threading.Event()

        def drop(self) -> None: ...
        def resolve(self, features: np.ndarray, timings: dict[str, float]) -> None:
            self.got = features
            self.over.set()

        def fail(self, error: Exception) -> None:
            self.got = error
            self.over.set()

    engine = InferenceEngine(Settings(resize="exact"), load_model=lambda spec, settings: model)
    engine.start()
    try:
        got = [Recipient() for _ in range(2)]
        for item, recipient in zip((WHITE, "a dog"), got, strict=True):
            assert engine.acquire(Lane.INTERACTIVE, 1)
            engine.embed(model, Lane.INTERACTIVE, item, recipient)
        assert all(recipient.over.wait(WAIT) for recipient in got)
        near(got[1].got, plain.embed_texts([plain.tokenizer("a dog")]).result()[0])
        assert got[0].got.shape == (model.dimension,)
        assert gpu.waits == []
    finally:
        engine.stop()


def test_the_largest_batches_are_computed_before_the_first_request_also_where_they_do_not_fit(
    gpu: StandInGpu, model: ClipModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[str, int, int]] = []
    for name in ("embed_images", "embed_texts"):
        embed = getattr(model, name)

        def noted(rows: list[Any], name: str = name, embed: Any = embed) -> Any:
            asked.append((name, len(rows), len(rows[0])))
            return embed(rows)

        monkeypatch.setattr(model, name, noted)
    monkeypatch.setattr(PassThreads, "__init__", lambda self, model, most: None)
    settings = Settings(batch_size=24)
    InferenceEngine(settings, load_model=lambda spec, settings: model)
    assert asked == [("embed_images", 24, 64), ("embed_texts", 24, 32)]
    assert "halved" not in caplog.text
    gpu.memory = gpu.used
    InferenceEngine(settings, load_model=lambda spec, settings: model)
    warnings = [record.getMessage() for record in caplog.records if "halved" in record.getMessage()]
    assert [said[:9] for said in warnings] == ["24 images", "24 texts "]
    assert "set CLIP_QUEUE_BATCH_SIZE lower" in warnings[0]
