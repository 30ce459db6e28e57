"""CUDA graphs of the passes of a few rows, which are bound by their launches: hundreds of kernels become one launch.

A graph has a fixed number of rows (and of tokens) and buffers of its own. A batch is copied into the first rows of the
buffer of the next larger graph; what lies in the others is computed and not read. All passes use one stream, so a
buffer is written anew only when the pass before, and the copy of its features, are done.

Graphs are captured when the model is loaded, while no other thread uses the device, and each must give what the plain
pass gives; where one does not, or capturing fails, plain passes are used and the log says why.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from clip_queue.shared.vectors import Pixels, Tokens
from clip_queue.worker.inference.clip_model import ClipModel, PendingFeatures

log = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16)
TOKENS = 16  # of a usual text: there is a graph for these and one for the context length
WARM_UPS = 3  # passes before capturing, in which libraries choose their kernels and take their workspaces
NEAR = 0.9995  # least cosine of a graph's features to those of the plain pass


class Replay(Protocol):
    """A captured pass. :meth:`replay` computes ``output`` from what is in ``input``, in the order of the stream."""

    @property
    def input(self) -> torch.Tensor: ...
    @property
    def output(self) -> torch.Tensor: ...
    def replay(self) -> None: ...


Forward = Callable[[torch.Tensor], torch.Tensor]
Capture = Callable[[Forward, torch.Tensor], Replay]  # given the buffer for the input, on the device


@dataclass(frozen=True)
class Graph:
    """A pass that CUDA has recorded."""

    input: torch.Tensor
    output: torch.Tensor
    graph: Any
    device: torch.device

    def replay(self) -> None:
        with torch.cuda.device(self.device):  # a graph runs on the current stream of the current device
            self.graph.replay()


def capture(forward: Forward, buffer: torch.Tensor) -> Graph:
    """Record a pass. Raises what torch raises if the pass cannot be recorded: it waits for the device, for instance."""
    with torch.cuda.device(buffer.device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                forward(buffer)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = forward(buffer)
        return Graph(buffer, output, graph, buffer.device)


class CudaGraphs:
    """The graphs of a model. Call all but the constructor in the thread that runs its passes."""

    @classmethod
    def of(cls, model: ClipModel, capture: Capture = capture) -> CudaGraphs | None:
        """The graphs of a model; None if it has none."""
        began = time.monotonic()
        try:
            graphs = cls(model, capture)
        except torch.cuda.OutOfMemoryError:
            log.warning("no CUDA graphs for %s: there is too little memory on the device", model.info.name)
        except Exception as error:  # torch raises RuntimeError, AcceleratorError; a tower its own
            why = next(iter(str(error).splitlines()), "")[:200]
            log.warning("no CUDA graphs for %s: %s: %s", model.info.name, type(error).__name__, why)
        else:
            log.info("CUDA graphs for up to %d rows, captured in %.1f s", ROWS[-1], time.monotonic() - began)
            return graphs
        return None

    @torch.inference_mode()
    def __init__(self, model: ClipModel, capture: Capture) -> None:
        self._model = model
        context, trims = model.tokenizer.context_length, model.text_tower.trims
        self._lengths = sorted({min(TOKENS, context), context} if trims else {context})
        generator = torch.Generator().manual_seed(0)
        # The largest first: the smaller ones then find memory that it has left.
        self._images = {
            rows: self._proven(
                capture,
                model.image_tower,
                torch.randint(0, 256, (rows, *model.image_size, 3), dtype=torch.uint8, generator=generator),
            )
            for rows in reversed(ROWS)
        }
        some = [model.tokenizer(text) for text in ("a", "a photo of a dog", "two cats")]
        self._texts = {
            (rows, length): self._proven(
                capture, model.text_tower, model.padded([some[row % len(some)][:length] for row in range(rows)], length)
            )
            for rows in reversed(ROWS)
            for length in reversed(self._lengths)
        }

    def _proven(self, capture: Capture, forward: Forward, example: torch.Tensor) -> Replay:
        """A graph that gives for an example what the plain pass gives. Raises :class:`ArithmeticError` if not."""
        example = example.to(self._model.device)
        wanted = forward(example).float()
        graph = capture(forward, torch.zeros_like(example))
        graph.input.copy_(example)
        graph.replay()
        cosines = torch.nn.functional.cosine_similarity(graph.output.float(), wanted, dim=-1)
        if not bool((cosines >= NEAR).cpu().all()):  # also of what is no number
            raise ArithmeticError(f"a graph of {len(example)} rows gives other features than the plain pass")
        return graph

    @staticmethod
    def take(items: Sequence[Any]) -> bool:
        """Whether there is a graph for so many images or texts."""
        return len(items) <= ROWS[-1]

    def embed_images(self, images: Sequence[Pixels]) -> PendingFeatures:
        """As :meth:`ClipModel.embed_images`."""
        return self._run(self._images[_bucket(ROWS, len(images))], self._model.stack(images))

    def embed_texts(self, texts: Sequence[Tokens]) -> PendingFeatures:
        """As :meth:`ClipModel.embed_texts`."""
        length = _bucket(self._lengths, max(map(len, texts)))
        return self._run(self._texts[_bucket(ROWS, len(texts)), length], self._model.padded(texts, length))

    @torch.inference_mode()
    def _run(self, graph: Replay, batch: torch.Tensor) -> PendingFeatures:
        rows = len(batch)
        graph.input[:rows].copy_(batch, non_blocking=True)
        graph.replay()
        return PendingFeatures(graph.output[:rows])


def _bucket(sizes: Sequence[int], wanted: int) -> int:
    """The least size that holds so many."""
    return next(size for size in sizes if size >= wanted)
