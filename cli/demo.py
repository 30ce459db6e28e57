"""``clip-queue demo``: it embeds and compares sample images and words through the whole service."""

from __future__ import annotations

import base64
import importlib.resources
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from clip_queue.shared.models import NOTICES
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Matrix, cosine
from clip_queue.stack.embedded import EmbeddedStack
from clip_queue.stack.machine import StackError

MODEL = "emoji-mini"
REQUEST_TIMEOUT = 60.0  # seconds
AGREE = 0.02  # largest difference between cosines of /clip/compare and of embeddings; rounding depends on the batch
ENOUGH = 0.75  # least share of images that are nearest to their own word; by chance it is 1 / number of words


@dataclass(frozen=True)
class Sample:
    """An image of this package and the word for it."""

    name: str
    png: bytes

    @property
    def image(self) -> dict[str, str]:
        """The image as it is sent to the API."""
        return {"type": "base64", "value": base64.b64encode(self.png).decode()}


def load_samples() -> list[Sample]:
    """The sample images of this package."""
    folder = importlib.resources.files("clip_queue.cli") / "samples"
    listed = json.loads((folder / "samples.json").read_text())
    return [Sample(entry["name"], (folder / entry["file"]).read_bytes()) for entry in listed]


def demo(console: Console, settings: Settings, make_stack: Callable[[Settings], EmbeddedStack] = EmbeddedStack) -> None:
    """Start a service, embed and compare the samples, and print what came out.

    ``settings`` serve :data:`MODEL`, to anybody.

    Raises:
        StackError: the service does not start or does not answer, or its answers are wrong.
    """
    samples = load_samples()
    words = [sample.name for sample in samples]
    stack = make_stack(settings)
    try:
        with step(console, "started Valkey, a Celery worker and the API"):
            stack.start()
        with httpx.Client(base_url=stack.api_url, timeout=REQUEST_TIMEOUT, trust_env=False) as client:
            size = settings.max_items
            with step(console, f"embedded {len(samples)} images"):
                images = embed(client, "image", [sample.image for sample in samples], size)
            with step(console, f"embedded {len(words)} words"):
                texts = embed(client, "text", words, size)
            with step(console, f"compared {len(samples)} images with {len(words)} words"):
                cosines = np.array([compare(client, sample, words, size) for sample in samples], dtype=np.float32)
        with step(console, "stopped them all"):
            stack.stop()
    except httpx.HTTPError as error:
        raise StackError(f"the service did not answer as it should: {error}") from error
    finally:
        stack.stop()
    console.print(cosine_table(samples, cosines, console.width))
    check(
        console,
        cosines,
        apart=float(np.abs(cosines - np.stack([cosine(image, texts) for image in images])).max()),
        dimension=images.shape[1],
    )


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    """Print a line with the time that a step has taken."""
    begin = time.perf_counter()
    yield
    seconds = time.perf_counter() - begin
    took = f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
    console.print(f"[green]✓[/] {what} [dim]in {took}[/]", highlight=False)


def embed(client: httpx.Client, kind: str, items: Sequence[Any], size: int) -> Matrix:
    """Raw features (n, dimension) of ``items``, float32. ``size``: most items in a request."""
    rows: list[list[float]] = []
    for part in parts(items, size):
        answer = client.post(f"/clip/embed_{kind}", json={kind: part}).raise_for_status().json()
        rows += answer["embeddings"]
    return np.array(rows, dtype=np.float32)


def compare(client: httpx.Client, sample: Sample, words: Sequence[str], size: int) -> list[float]:
    """The cosines of an image with each word. ``size``: most words in a request."""
    out: list[float] = []
    for part in parts(words, size):
        answer = client.post("/clip/compare", json={"subject": sample.image, "prompt": part}).raise_for_status().json()
        out += answer["similarity"]
    return out


def parts(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """``items`` in lists of ``size``."""
    return (list(items[i : i + size]) for i in range(0, len(items), size))


def cosine_table(samples: Sequence[Sample], cosines: Matrix, width: int) -> Table:
    """A table of the cosines (images, words), in which each image's best word is marked.

    It shows the first samples, as many as fit in ``width`` characters.
    """
    columns = np.cumsum([max(len(sample.name), 5) + 2 for sample in samples])
    margin = max(len(sample.name) for sample in samples) + 4
    shown = max(2, int((columns + margin <= width).sum()))
    left_out = f"; {shown} of {len(samples)} fit here" if shown < len(samples) else ""
    title = f"cosine of each image (row) with each word (column){left_out}"
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True, min_width=margin - 4)
    for sample in samples[:shown]:
        table.add_column(sample.name, justify="right", no_wrap=True)
    for sample, row in zip(samples[:shown], cosines[:, :shown], strict=False):
        best = int(row.argmax())
        cells = [f"[bold green]▸{c:.2f}[/]" if n == best else f"[dim]{c:.2f}[/]" for n, c in enumerate(row)]
        table.add_row(f"[bold]{sample.name}[/]", *cells)
    return table


def check(console: Console, cosines: Matrix, *, apart: float, dimension: int) -> None:
    """Check the cosines (images, words) and print the result.

    Args:
        apart: largest difference between a cosine of ``/clip/compare`` and of the embeddings.
        dimension: of the embeddings.

    Raises:
        StackError: too few images are nearest to their own word, or the two kinds of cosines differ.
    """
    count = len(cosines)
    right = int((cosines.argmax(axis=1) == np.arange(count)).sum())
    if right < ENOUGH * count:
        raise StackError(f"only {right} of {count} images are nearest to their own word")
    if apart > AGREE:
        raise StackError(f"/clip/compare and the cosines of the embeddings differ by {apart:.3f}")
    console.print(
        f"[green]✓[/] {right} of {count} images are nearest to their own word: over HTTP, through Valkey and Celery "
        f"to {MODEL} and back, {dimension} numbers each; /clip/compare says the same as the cosines of the embeddings "
        f"(within {apart:.0e})",
        highlight=False,
    )
    console.print(f"[yellow]{NOTICES[MODEL]}[/]", highlight=False)
