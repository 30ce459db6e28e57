"""How many threads a pass gets, by a model that takes as long as a test says."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.cuda_graphs import CudaGraphs
from clip_queue.worker.inference.pass_threads import PassThreads
from tests.unit.worker.test_clip_model import emoji as emoji  # the fixture


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Timed:
    """A model on a clock of its own: a row takes ``row`` seconds of one thread, to wake others ``wake``."""

    device = torch.device("cpu")
    image_size = (2, 2)
    tokenizer = SimpleNamespace(context_length=5)

    def __init__(self, row: float, wake: float) -> None:
        self.row, self.wake, self.clock = row, wake, 0.0
        self.passes: list[tuple[int, int]] = []  # rows and threads

    def embed_images(self, rows: Any) -> int:
        threads = torch.get_num_threads()
        self.clock += self.row * len(rows) / threads + (self.wake if threads > 1 else 0)
        self.passes.append((len(rows), threads))
        return len(rows)

    embed_texts = embed_images


def chosen(model: Timed) -> PassThreads:
    found = PassThreads(model, now=lambda: model.clock)  # type: ignore[arg-type]
    model.passes.clear()
    return found


def rows(count: int) -> Any:
    return [np.zeros(1)] * count


def test_few_rows_are_for_one_thread_and_more_for_all() -> None:
    model = Timed(row=0.001, wake=0.002)  # 4 rows: 4 ms, or 1 + 2 ms
    passes = chosen(model)
    assert (passes.few_images, passes.few_texts) == (2, 2)
    for count in (1, 2, 3, 32):
        assert passes.images(rows(count)) == count
        passes.texts(rows(count))
    assert model.passes == [(1, 1), (1, 1), (2, 1), (2, 1), (3, 4), (3, 4), (32, 4), (32, 4)]
    assert torch.get_num_threads() == 4, "as passes of datasets find it"


def test_a_model_that_takes_long_has_all_threads_and_is_not_measured_further() -> None:
    model = Timed(row=0.05, wake=1.0)
    before = PassThreads(model, now=lambda: model.clock)  # type: ignore[arg-type]
    assert (before.few_images, before.few_texts) == (0, 0)
    assert len(model.passes) <= 4


def test_an_error_leaves_the_threads_as_they_were() -> None:
    model = Timed(row=0.0001, wake=0.01)
    passes = chosen(model)
    assert passes.few_images == 8

    def broken(images: Any) -> int:
        raise RuntimeError

    model.embed_images = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        passes.images(rows(1))
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_other_devices_are_not_measured(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaGraphs, "of", lambda model: None)
    model = Timed(0.001, 0.002)
    model.device = torch.device(device)
    assert chosen(model).few_images == 0
    assert not model.passes


def test_with_one_thread_nothing_is_measured() -> None:
    torch.set_num_threads(1)
    model = Timed(0.001, 0.002)
    assert chosen(model).few_images == 0
    assert not model.passes


def test_a_real_model_gives_the_same_vectors_with_one_thread(emoji: ClipModel) -> None:
    passes = PassThreads(emoji)
    image = np.random.default_rng(0).integers(0, 255, (*emoji.image_size, 3), dtype=np.uint8)
    passes.few_images = passes.few_texts = 8
    np.testing.assert_allclose(
        passes.images([image]).result(), emoji.embed_images([image]).result(), rtol=1e-4, atol=1e-5
    )
    tokens = emoji.tokenizer("a red heart")
    np.testing.assert_allclose(
        passes.texts([tokens]).result(), emoji.embed_texts([tokens]).result(), rtol=1e-4, atol=1e-5
    )
