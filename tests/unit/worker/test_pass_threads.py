"""How many threads a pass gets, by a model that takes as long as a test says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.cuda_graphs import CudaGraphs
from clip_queue.worker.inference.pass_threads import PassThreads
from tests.checkpoints import tiny_checkpoint
from tests.unit.worker.test_clip_model import emoji as emoji  # the fixture


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Timed:
    """A model on a clock of its own: a row takes ``row`` seconds of one thread, to wake another ``wake``."""

    device = torch.device("cpu")
    precision = "bf16"
    image_size = (2, 2)
    tokenizer = SimpleNamespace(context_length=5)

    def __init__(self, row: float, wake: float) -> None:
        self.row, self.wake, self.clock = row, wake, 0.0
        self.passes: list[tuple[int, int]] = []  # rows and threads

    def embed_images(self, rows: Any) -> int:
        threads = torch.get_num_threads()
        self.clock += self.row * len(rows) / threads + self.wake * (threads - 1)
        self.passes.append((len(rows), threads))
        return len(rows)

    embed_stack = embed_texts = embed_images


def chosen(model: Timed) -> PassThreads:
    found = PassThreads(model, now=lambda: model.clock)  # type: ignore[arg-type]
    model.passes.clear()
    return found


def rows(count: int) -> Any:
    return [np.zeros(1)] * count


def test_few_rows_are_for_one_thread_and_more_for_more() -> None:
    model = Timed(row=0.001, wake=0.001)  # 8 rows: 8 ms of one thread, 5 of two, 5 of four; 32: 32, 17 and 11
    passes = chosen(model)
    assert passes.of_images == passes.of_texts == [(4, 1), (16, 2)]
    for count, threads in ((1, 1), (4, 1), (5, 2), (16, 2), (17, 4), (64, 4)):
        model.passes.clear()
        assert passes.images(rows(count)) == count
        passes.texts(rows(count))
        assert model.passes == [(count, threads)] * 2
    assert torch.get_num_threads() == 4, "as passes of datasets find it"


def test_threads_that_gain_nothing_are_never_used_within_what_was_measured() -> None:
    passes = chosen(Timed(row=0.0001, wake=1.0))
    assert passes.of_images == [(32, 1)]


def test_of_three_threads_the_third_must_gain_as_much() -> None:
    torch.set_num_threads(3)
    assert chosen(Timed(row=0.001, wake=0.001)).of_images == [(4, 1), (8, 2)]


def test_a_model_that_takes_long_has_all_threads_and_is_not_measured_further() -> None:
    model = Timed(row=0.06, wake=1.0)
    before = PassThreads(model, now=lambda: model.clock)  # type: ignore[arg-type]
    assert before.of_images == before.of_texts == []
    assert len(model.passes) <= 4


@pytest.mark.parametrize(("wake", "found", "largest"), [(1.0, [(2, 1)], 4), (0.004, [(1, 1), (4, 2)], 8)])
def test_nothing_is_measured_from_the_size_on_that_takes_long(
    wake: float, found: list[tuple[int, int]], largest: int
) -> None:
    model = Timed(row=0.02, wake=wake)
    before = PassThreads(model, most=1024, now=lambda: model.clock)  # type: ignore[arg-type]
    assert before.of_images == found
    assert max(count for count, _ in model.passes) == largest


def test_an_error_leaves_the_threads_as_they_were() -> None:
    model = Timed(row=0.0001, wake=0.01)
    passes = chosen(model)
    assert passes.of_images

    def broken(images: Any) -> int:
        raise RuntimeError

    model.embed_images = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        passes.images(rows(1))
    assert torch.get_num_threads() == 4


def test_a_pass_in_one_thread_of_ours_does_not_decide_for_another() -> None:
    model = Timed(row=0.0001, wake=0.01)
    passes = chosen(model)
    passes.of_images = [(1, 1)]
    inside, go_on = threading.Event(), threading.Event()

    def waits(images: Any) -> int:
        inside.set()
        assert go_on.wait(10)
        return len(images)

    model.embed_images = waits  # type: ignore[method-assign]
    one = threading.Thread(target=passes.images, args=(rows(1),))
    one.start()
    assert inside.wait(10)
    del model.embed_images
    other = threading.Thread(target=passes.images, args=(rows(2),))  # begins while torch is set to one thread
    other.start()
    other.join(10)
    go_on.set()
    one.join(10)
    assert model.passes == [(2, 4)]


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_other_devices_are_not_measured(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaGraphs, "of", lambda model: None)
    model = Timed(0.001, 0.002)
    model.device = torch.device(device)
    assert chosen(model).of_images == []
    assert not model.passes


def test_with_one_thread_nothing_is_measured() -> None:
    torch.set_num_threads(1)
    model = Timed(0.001, 0.002)
    assert chosen(model).of_images == []
    assert not model.passes


def test_a_real_model_gives_the_same_vectors_with_one_thread(emoji: ClipModel) -> None:
    passes = PassThreads(emoji)
    image = np.random.default_rng(0).integers(0, 255, (*emoji.image_size, 3), dtype=np.uint8)
    passes.of_images = passes.of_texts = [(8, 1)]
    np.testing.assert_allclose(
        passes.images([image]).result(), emoji.embed_images([image]).result(), rtol=1e-4, atol=1e-5
    )
    tokens = emoji.tokenizer("a red heart")
    np.testing.assert_allclose(
        passes.texts([tokens]).result(), emoji.embed_texts([tokens]).result(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("precision", "wanted"), [("bf16", [1, 1]), ("fp32", [4, 4]), ("fp16", [4, 4])])
def test_of_datasets_only_passes_at_bf16_have_fewer_threads(precision: str, wanted: list[int]) -> None:
    model = Timed(row=0.0001, wake=0.01)
    model.precision = precision
    passes = chosen(model)
    passes.dataset_images(rows(8))
    passes.dataset_texts(rows(8))
    assert [count for _, count in model.passes] == wanted


@pytest.mark.parametrize("count", [1, 3, 8, 32])
def test_at_bf16_the_bytes_do_not_depend_on_the_threads(count: int, tmp_path: Path) -> None:
    random = np.random.default_rng(count)
    for source in ("emoji-mini", f"m=local-dir:{tiny_checkpoint(tmp_path / 'tiny')}"):
        model = ClipModel(parse_model(source), Settings(device="cpu", precision="bf16"))
        images = list(random.integers(0, 255, (count, *model.image_size, 3), dtype=np.uint8))
        texts = [model.tokenizer("word " * n) for n in random.integers(1, 9, count)]
        found = set()
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.add((model.embed_images(images).result().tobytes(), model.embed_texts(texts).result().tobytes()))
        assert len(found) == 1
