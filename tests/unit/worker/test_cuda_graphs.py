"""CUDA graphs on the stand-in device, whose graphs run their pass anew: buckets, padding, order, falling back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from clip_queue.shared.models import parse_model
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.cuda_graphs import ROWS, CudaGraphs, Forward
from clip_queue.worker.inference.pass_threads import PassThreads
from tests.unit.worker.stand_in_gpu import Patched, StandInGpu

LENGTHS = (16, 32)  # of emoji-mini's texts


class FakeGraph:
    """Its output is one buffer, which each replay fills anew, as a graph's is."""

    def __init__(self, forward: Forward, buffer: torch.Tensor) -> None:
        self.input, self.replays = buffer, 0
        self._forward = forward
        self.output = forward(buffer).clone()

    def replay(self) -> None:
        self.replays += 1
        self.output.copy_(self._forward(self.input))


class Captured:
    """Makes fake graphs, and keeps them by the shape of their input."""

    def __init__(self, error: Exception | None = None, wrong: bool = False) -> None:
        self.graphs: dict[tuple[int, ...], FakeGraph] = {}
        self._error, self._wrong = error, wrong

    def __call__(self, forward: Forward, buffer: torch.Tensor) -> FakeGraph:
        if self._error:
            raise self._error
        made = FakeGraph((lambda batch: forward(batch).flip(-1)) if self._wrong else forward, buffer)
        self.graphs[tuple(buffer.shape)] = made
        return made


@pytest.fixture(scope="module")
def plain() -> ClipModel:
    return ClipModel(parse_model("emoji-mini"), Settings(device="cpu", precision="fp32"))


@pytest.fixture(scope="module")
def gpu(plain: ClipModel) -> Iterator[StandInGpu]:
    with pytest.MonkeyPatch.context() as patch, Patched(patch) as gpu:
        yield gpu


@pytest.fixture(scope="module")
def model(gpu: StandInGpu) -> ClipModel:
    return gpu.model(precision="fp32")


@pytest.fixture(scope="module")
def captured() -> Captured:
    return Captured()


@pytest.fixture(scope="module")
def graphs(gpu: StandInGpu, model: ClipModel, captured: Captured) -> Any:
    made = gpu.within(CudaGraphs.of)(model, captured)
    assert made
    for method in ("embed_images", "embed_texts"):
        setattr(made, method, gpu.within(getattr(made, method)))
    return made


def images(plain: ClipModel, count: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 255, (*plain.image_size, 3), dtype=np.uint8) for _ in range(count)]


def near(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_there_is_a_graph_for_each_bucket(graphs: CudaGraphs, captured: Captured, plain: ClipModel) -> None:
    of_images = {(rows, *plain.image_size, 3) for rows in ROWS}
    assert captured.graphs.keys() == of_images | {(rows, length) for rows in ROWS for length in LENGTHS}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
def test_the_rows_of_a_padded_bucket_are_those_of_the_plain_pass(
    gpu: StandInGpu, graphs: CudaGraphs, captured: Captured, plain: ClipModel, count: int
) -> None:
    gpu.waits.clear()
    bucket = next(rows for rows in ROWS if rows >= count)
    graph = captured.graphs[(bucket, *plain.image_size, 3)]
    before = graph.replays
    found = graphs.embed_images(images(plain, count)).result()
    assert found.shape == (count, plain.dimension)
    near(found, plain.embed_images(images(plain, count)).result())
    assert graph.replays == before + 1
    assert gpu.waits == [], "nothing waits for the device"


@pytest.mark.parametrize("count", [1, 3, 16])
@pytest.mark.parametrize("text", ["a dog", "a very long text of " + "a cat and a dog, " * 3])
def test_texts_go_to_the_shorter_length_that_holds_them(
    graphs: CudaGraphs, captured: Captured, plain: ClipModel, count: int, text: str
) -> None:
    tokens = [plain.tokenizer(f"{text} {n}") for n in range(count)]
    length = LENGTHS[0] if max(map(len, tokens)) <= LENGTHS[0] else LENGTHS[1]
    graph = captured.graphs[(next(rows for rows in ROWS if rows >= count), length)]
    before = graph.replays
    near(graphs.embed_texts(tokens).result(), plain.embed_texts(tokens).result())
    assert graph.replays == before + 1


def test_a_pass_launched_ahead_in_the_same_buffers_spoils_no_answer(
    gpu: StandInGpu, graphs: CudaGraphs, plain: ClipModel
) -> None:
    gpu.stream.pause()
    launched = [graphs.embed_images(images(plain, 3, seed)) for seed in range(3)]
    gpu.stream.resume()
    for seed, pending in enumerate(launched):
        near(pending.result(), plain.embed_images(images(plain, 3, seed)).result())


@pytest.mark.parametrize(
    ("captured", "why"),
    [
        (Captured(RuntimeError("CUDA error: operation not permitted when stream is capturing")), "not permitted"),
        (Captured(torch.cuda.OutOfMemoryError("CUDA out of memory")), "too little memory"),
        (Captured(wrong=True), "gives other features than the plain pass"),
    ],
)
def test_where_capturing_fails_there_are_plain_passes_and_a_line_in_the_log(
    gpu: StandInGpu, model: ClipModel, caplog: pytest.LogCaptureFixture, captured: Captured, why: str
) -> None:
    assert gpu.within(CudaGraphs.of)(model, captured) is None
    assert why in caplog.text


def test_passes_of_requests_use_graphs_and_larger_ones_do_not(
    gpu: StandInGpu, model: ClipModel, plain: ClipModel, monkeypatch: pytest.MonkeyPatch, graphs: CudaGraphs
) -> None:
    monkeypatch.setattr(CudaGraphs, "of", lambda model: graphs)
    used: list[int] = []
    run = graphs._run
    monkeypatch.setattr(graphs, "_run", lambda graph, batch: used.append(len(batch)) or run(graph, batch))
    passes = PassThreads(model)
    for count in (2, ROWS[-1] + 1):
        some = images(plain, count)
        near(passes.images(some).result(), plain.embed_images(some).result())
        texts = [plain.tokenizer(f"{n} dogs") for n in range(count)]
        near(passes.texts(texts).result(), plain.embed_texts(texts).result())
    assert used == [2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_on_a_gpu() -> None:
    model = ClipModel(parse_model("emoji-mini"), Settings(device="cuda"))
    graphs = CudaGraphs.of(model)
    assert graphs
    some = images(model, 5)
    np.testing.assert_allclose(
        graphs.embed_images(some).result(), model.embed_images(some).result(), rtol=0.02, atol=0.1
    )
