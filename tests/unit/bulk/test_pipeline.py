"""Rows to vectors with a model that computes nothing: order, batches, bounds, what hangs and what fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.shard import readers
from clip_queue.bulk.shard.halves import Embedded
from clip_queue.bulk.shard.pipeline import Abandoned, Pipeline
from clip_queue.shared.errors import BadImage, ClipError, TextTooLong
from clip_queue.shared.lane import Lane
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import Row, Source, SourceAway, SourceError
from clip_queue.sources.storage import StoreAway
from clip_queue.worker.inference.batcher import Batcher
from clip_queue.worker.inference.decode import decode
from clip_queue.worker.inference.thread_pool import PriorityThreadPool
from tests.harness import wait_for
from tests.images import noise_image

INFO = ModelInfo("m", "none", "f", 1, 8, (4, 4), "fp32")
IMAGE = noise_image(1, (8, 8))
IMAGES = Source("", "folder", images=True, texts=False)
TEXTS = Source("", "text", images=False, texts=True)


class Model:
    """An image's vector is 1, a text's its length."""

    draft = 0

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fails: Callable[[list[Any]], bool] = lambda batch: False

    def preprocess(self, image: Any) -> Any:
        return image.resize((4, 4))

    def stack(self, images: list[Any]) -> np.ndarray:
        return np.stack(images)

    def embed_stack(self, stack: np.ndarray) -> Any:
        return self._pass(list(stack), np.ones((len(stack), 1), dtype=np.float32))

    def tokenizer(self, text: str) -> np.ndarray:
        if len(text) > 8:
            raise TextTooLong("too long")
        return np.arange(len(text))

    def embed_texts(self, texts: list[np.ndarray]) -> Any:
        return self._pass(texts, np.array([[len(t)] for t in texts], dtype=np.float32))

    def _pass(self, batch: list[Any], features: np.ndarray) -> Any:
        if self.fails(batch):
            raise RuntimeError("this batch cannot be computed")
        self.batches.append(len(batch))
        return SimpleNamespace(result=lambda: features)


def _unexpected(error: BaseException) -> None:
    raise AssertionError from error


def decoded(model: Model, lane: Lane, data: bytes, unwanted: Callable[[], bool]) -> Future[Any]:
    done: Future[Any] = Future()
    try:
        done.set_result(decode(data, model.preprocess, max_bytes=2**24, max_pixels=2**24))
    except ClipError as error:
        done.set_exception(error)
    return done


@pytest.fixture
def engine() -> Iterator[Any]:
    batcher = Batcher({Lane.INTERACTIVE: 4, Lane.BACKGROUND: 4, Lane.BULK: 1}, capacity=100, fatal=_unexpected)
    decoders = PriorityThreadPool(2, fatal=_unexpected)
    batcher.start()
    decoders.start()
    settings = Settings(read_threads=2, read_timeout=1.5)
    yield SimpleNamespace(models={"m": Model()}, settings=settings, batcher=batcher, decoders=decoders, decode=decoded)
    assert batcher.stop(5)
    decoders.stop(5)


def embedded(
    engine: Any, rows: Iterator[Row], source: Source = TEXTS, batch: int = 4, **options: Any
) -> list[Embedded]:
    plan = RunPlan("p", source, INFO, PlanOptions(batch_size=batch), 1, None)
    return [*Pipeline(engine, plan, options.get("should_stop", lambda: False)).embed(rows)]


def texts(*some: str) -> Iterator[Row]:
    return (Row({"caption": text}, text=text) for text in some)


def names(parts: list[Embedded]) -> list[str]:
    return [row.columns["caption"] for part in parts for row in part.rows]


def failures(parts: list[Embedded]) -> list[tuple[str, str]]:
    return [(part.failed[0].columns["caption"], part.failed[1].code) for part in parts if part.failed]


def test_rows_keep_their_order_and_batches_are_made_of_the_good_ones_alone(engine: Any) -> None:
    some = ["a" * (1 + i % 3) if i % 5 else "far too long" for i in range(23)]
    parts = embedded(engine, texts(*some))
    good = [text for text in some if len(text) <= 8]
    assert names(parts) == good
    assert failures(parts) == [("far too long", "text_too_long")] * 5
    assert engine.models["m"].batches == [4, 4, 4, 4, 2]
    vectors = np.concatenate([part.vectors["text"] for part in parts if part.rows])
    assert vectors[:, 0].tolist() == [len(text) for text in good]


def test_batches_do_not_depend_on_which_row_is_ready_first(engine: Any) -> None:
    release = [threading.Event() for _ in range(8)]

    def slow(i: int) -> Callable[[], bytes]:
        def load() -> bytes:
            if i % 2 == 0:  # every other one comes late
                time.sleep(0.02)
            release[i].set()
            return IMAGE

        return load

    engine.settings = Settings(read_threads=8, read_timeout=5)
    parts = embedded(engine, (Row({"caption": str(i)}, image=slow(i)) for i in range(8)), IMAGES, batch=3)
    assert names(parts) == [str(i) for i in range(8)]
    assert engine.models["m"].batches == [3, 3, 2]


def test_what_keeps_every_row_back_ends_the_shard_instead_of_failing_them_all(engine: Any) -> None:
    def load() -> bytes:
        raise SourceError("no URL can be fetched")

    with pytest.raises(SourceError, match="no URL can be fetched"):
        embedded(engine, (Row({"caption": str(i)}, image=load) for i in range(8)), IMAGES)


def test_no_more_rows_are_under_way_than_the_settings_allow(engine: Any) -> None:
    begun, done = [0], [0]
    most = [0]

    def rows() -> Iterator[Row]:
        for i in range(200):
            begun[0] += 1
            most[0] = max(most[0], begun[0] - done[0])
            yield Row({"caption": str(i)}, text="a")

    plan = RunPlan("p", TEXTS, INFO, PlanOptions(batch_size=4), 1, None)
    for part in Pipeline(engine, plan, lambda: False).embed(rows()):
        time.sleep(0.002)  # a slow writer
        done[0] += len(part.rows)
    assert done == [200]
    # What waits to be prepared (2 batches, 2 for each reader, one in hand), a batch being made, 4 handed over.
    assert most[0] <= 2 * 4 + 2 * 2 + 2 + 4 + 4 * 4 + 4


def test_a_read_that_hangs_is_its_own_rows_error(engine: Any) -> None:
    gate = threading.Event()

    def hang() -> bytes:
        gate.wait(10)
        return IMAGE

    rows = (Row({"caption": str(i)}, image=hang if i == 2 else lambda: IMAGE) for i in range(5))
    parts = embedded(engine, rows, IMAGES)
    gate.set()
    assert names(parts) == ["0", "1", "3", "4"]
    error = next(part.failed[1] for part in parts if part.failed)
    assert "could not be read within 1.5 s" in error.message


def test_a_source_whose_every_read_hangs_ends_the_shard(engine: Any) -> None:
    gate = threading.Event()
    rows = (Row({"caption": str(i)}, image=lambda: bytes(gate.wait(20))) for i in range(50))
    with pytest.raises(SourceError, match=r"reads in a row took more than"):
        embedded(engine, rows, IMAGES)
    gate.set()


def test_a_container_that_gives_no_row_ends_the_shard(engine: Any) -> None:
    gate = threading.Event()

    def rows() -> Iterator[Row]:
        yield Row({"caption": "a"}, text="a")
        gate.wait(20)

    with pytest.raises(SourceError, match=r"no row for 1.5 s"):
        embedded(engine, rows())
    gate.set()


def test_a_container_that_cannot_be_read_on_ends_the_shard_with_the_reason(engine: Any) -> None:
    def rows() -> Iterator[Row]:
        yield Row({"caption": "a"}, text="a")
        raise OSError(5, "Input/output error")

    with pytest.raises(SourceError, match="Input/output error") as told:
        embedded(engine, rows())
    assert not isinstance(told.value, SourceAway), "a disk that fails does not come back"


@pytest.mark.parametrize("error", [StoreAway("Not now"), PermissionError("Forbidden")])
def test_a_container_whose_store_is_away_may_come_back(engine: Any, error: Exception) -> None:
    def rows() -> Iterator[Row]:
        yield Row({"caption": "a"}, text="a")
        raise error

    with pytest.raises(SourceAway, match=str(error)):
        embedded(engine, rows())


def test_what_a_row_brings_as_its_error_and_what_loading_raises_fail_the_row(engine: Any) -> None:
    def raises(error: Exception) -> Callable[[], bytes]:
        def load() -> bytes:
            raise error

        return load

    rows = [
        Row({"caption": "brought"}, error=BadImage("broken")),
        Row({"caption": "os"}, image=raises(FileNotFoundError(2, "No such file"))),
        Row({"caption": "ours"}, image=raises(ClipError("ours"))),
        Row({"caption": "theirs"}, image=raises(KeyError("bucket"))),
        Row({"caption": "none"}),
        Row({"caption": "good"}, image=IMAGE),
    ]
    parts = embedded(engine, iter(rows), IMAGES)
    assert names(parts) == ["good"]
    assert [name for name, _ in failures(parts)] == ["brought", "os", "ours", "theirs", "none"]


def test_a_batch_that_fails_is_halved_until_the_row_to_blame_stands_alone(engine: Any) -> None:
    engine.models["m"].fails = lambda batch: any(len(tokens) == 7 for tokens in batch)
    parts = embedded(engine, texts("a", "bb", "c" * 7, "dddd", "e"))
    assert names(parts) == ["a", "bb", "dddd", "e"]
    assert failures(parts) == [("c" * 7, "internal")]


def test_a_row_without_text_beside_its_image_has_zeros(engine: Any) -> None:
    both = replace(IMAGES, texts=True)
    rows = [Row({"caption": t}, image=IMAGE, text=t) for t in ("a", None, "ccc")]
    parts = embedded(engine, iter(rows), both)
    assert parts[0].vectors["text"][:, 0].tolist() == [1, 0, 3]
    assert parts[0].vectors["image"][:, 0].tolist() == [1, 1, 1]
    assert failures(embedded(engine, iter([Row({"caption": "x"})]), TEXTS)) == [("x", "bad_input")]


def test_an_abandoned_shard_stops_at_once(engine: Any) -> None:
    stopped = [False]
    gate = threading.Event()

    def load() -> bytes:
        stopped[0] = True
        gate.wait(20)
        return IMAGE

    engine.settings = Settings(read_timeout=60)
    began = time.monotonic()
    with pytest.raises(Abandoned):
        embedded(engine, iter([Row({"caption": "x"}, image=load)]), IMAGES, should_stop=lambda: stopped[0])
    gate.set()
    assert time.monotonic() - began < 5


def test_threads_end_with_the_shard(engine: Any) -> None:
    before = {thread.name for thread in threading.enumerate()}
    embedded(engine, (Row({"caption": str(i)}, image=lambda: IMAGE) for i in range(20)), IMAGES)
    assert {thread.name for thread in threading.enumerate()} == before


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("capacity", [1, 4])
def test_a_lane_that_is_full_is_waited_for(batch: int, capacity: int) -> None:
    """A small batch size of the worker leaves less room in the lane than a shard hands over ahead."""
    model = Model()
    batcher = Batcher({Lane.INTERACTIVE: 1, Lane.BACKGROUND: 1, Lane.BULK: 1}, capacity=capacity, fatal=_unexpected)
    decoders = PriorityThreadPool(2, fatal=_unexpected)
    decoders.start()
    threading.Timer(0.3, batcher.start).start()  # a pass before that takes long
    engine = SimpleNamespace(
        models={"m": model}, settings=Settings(read_threads=2), batcher=batcher, decoders=decoders, decode=decoded
    )
    both = replace(IMAGES, texts=True)
    rows = (Row({"caption": str(i)}, image=IMAGE, text="a") for i in range(60))
    assert names(embedded(engine, rows, both, batch)) == [str(i) for i in range(60)]
    assert batcher.stop(5)
    decoders.stop(5)


def test_threads_do_not_grow_with_the_shards_whose_reads_hang(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_LEFT", 8)
    monkeypatch.setattr(readers, "STOP_TIMEOUT", 0.1)
    gate = threading.Event()
    engine.settings = Settings(read_threads=4, read_timeout=0.25)
    before = threading.active_count()

    def hang() -> bytes:
        gate.wait(60)
        return IMAGE

    reasons = []
    try:
        for _ in range(20):
            with pytest.raises(SourceError) as told:
                embedded(engine, (Row({"caption": str(i)}, image=hang) for i in range(50)), IMAGES)
            reasons.append(told.value.message)
        assert threading.active_count() - before <= 8 + 5
        assert "reads of earlier shards still hang in this worker" in reasons[-1]
    finally:
        gate.set()
    wait_for(lambda: threading.active_count() <= before, 10, "the threads to end")
    assert names(embedded(engine, iter([Row({"caption": "x"}, image=lambda: IMAGE)]), IMAGES)) == ["x"]


def test_a_first_row_that_comes_after_its_shard_is_over_starts_no_threads(engine: Any) -> None:
    gate = threading.Event()
    engine.settings = Settings(read_threads=16, read_timeout=0.25)
    before = threading.active_count()

    def late() -> Iterator[Row]:
        gate.wait(60)
        yield Row({"caption": "late"}, image=lambda: IMAGE)

    for _ in range(3):
        with pytest.raises(SourceError, match="the source gave no row"):
            embedded(engine, late(), IMAGES)
    assert threading.active_count() <= before + 3
    gate.set()
    wait_for(lambda: threading.active_count() <= before, 10, "the threads to end")


# The two halves of a row

BOTH = Source("", "folder", images=True, texts=True)


def halves(parts: list[Embedded]) -> list[tuple[str, float, float]]:
    return [
        (row.columns["caption"], float(image[0]), float(text[0]))
        for part in parts
        for row, image, text in zip(part.rows, *(part.vectors.get(k, []) for k in ("image", "text")), strict=True)
    ]


def fails(error: Exception) -> Callable[[], bytes]:
    def load() -> bytes:
        raise error

    return load


def both(*some: tuple[str, Any, str | None]) -> Iterator[Row]:
    return (Row({"caption": name}, image=image, text=text) for name, image, text in some)


def test_neither_half_of_a_row_takes_the_other_down(engine: Any) -> None:
    rows = [
        ("whole", IMAGE, "abc"),
        ("long", IMAGE, "far too long"),
        ("broken", b"no image", "ab"),
        ("dead", fails(BadImage("gone")), "a"),
        ("barred", fails(PermissionError(13, "not yours")), "a"),
        ("bug", fails(RuntimeError()), "a"),
        ("silent", IMAGE, None),
        ("both", b"", "far too long"),
        ("none", b"", None),
    ]
    parts = embedded(engine, both(*rows), BOTH, batch=4)
    assert halves(parts) == [
        ("whole", 1, 3),
        ("long", 1, 0),
        ("broken", 0, 2),
        ("dead", 0, 1),
        ("barred", 0, 1),
        ("bug", 0, 1),
        ("silent", 1, 0),
    ]
    assert [name for name, _ in failures(parts)] == ["both", "none"]
    faults = {row.columns["caption"]: list(row.faults) for part in parts for row in part.rows if row.faults}
    assert faults == {"long": ["text"], **{name: ["image"] for name in ("broken", "dead", "barred", "bug")}}


def test_a_batch_without_any_image_is_computed_all_the_same(engine: Any) -> None:
    parts = embedded(engine, both(*((str(n), b"broken", "ab") for n in range(5))), BOTH, batch=2)
    assert halves(parts) == [(str(n), 0, 2) for n in range(5)]


def test_an_image_that_hangs_leaves_its_text(engine: Any) -> None:
    engine.settings = Settings(read_threads=2, read_timeout=0.3)
    release = threading.Event()

    def hang() -> bytes:
        release.wait(20)
        return IMAGE

    try:
        parts = embedded(engine, both(("hangs", hang, "ab"), ("good", IMAGE, "abc")), BOTH)
    finally:
        release.set()
    assert halves(parts) == [("hangs", 0, 2), ("good", 1, 3)]
    assert "could not be read within" in parts[0].rows[0].faults["image"].message


def test_long_texts_are_cut_if_that_is_asked_for(engine: Any) -> None:
    engine.models["m"].tokenizer = Cutting()
    plan = RunPlan("p", BOTH, INFO, PlanOptions(batch_size=4, long_texts="cut"), 1, None)
    rows = both(("long", IMAGE, "far too long"), ("short", IMAGE, "abc"), ("longer", b"", "x" * 10_000))
    parts = [*Pipeline(engine, plan, lambda: False).embed(rows)]
    assert halves(parts) == [("long", 1, 8), ("short", 1, 3), ("longer", 0, 8)]
    assert sum(part.cut for part in parts) == 2


class Cutting:
    def __call__(self, text: str) -> np.ndarray:
        return Model().tokenizer(text)

    def cut(self, text: str) -> np.ndarray:
        return np.arange(min(8, len(text)))
