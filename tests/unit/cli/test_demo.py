"""``clip-queue demo`` around an imitated service whose vectors the test chooses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest

from clip_queue.cli.demo import Sample, cosine_table, demo, load_samples, parts
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Matrix, cosine
from clip_queue.stack.machine import StackError
from tests.unit.cli.printing import console, printed

SAMPLES = load_samples()
UNIT = np.eye(len(SAMPLES), dtype=np.float32)


class Service(HTTPServer):
    """It embeds the samples and their words as the rows of two matrices; a comparison is off by ``off``."""

    images: Matrix = UNIT
    texts: Matrix = UNIT
    off = 0.0
    status = 200

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        images = {sample.image["value"]: row for sample, row in zip(SAMPLES, self.images, strict=True)}
        texts = {sample.name: row for sample, row in zip(SAMPLES, self.texts, strict=True)}
        if path == "/clip/embed_image":
            return {"embeddings": [images[image["value"]].tolist() for image in body["image"]]}
        if path == "/clip/embed_text":
            return {"embeddings": [texts[text].tolist() for text in body["text"]]}
        prompts = np.stack([texts[text] for text in body["prompt"]])
        return {"similarity": (cosine(images[body["subject"]["value"]], prompts) + self.off).tolist()}


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Stack:
    """In place of an embedded stack."""

    def __init__(self, service: Service) -> None:
        self.api_url = f"http://127.0.0.1:{service.server_port}"
        self.stopped = False

    def start(self) -> None: ...

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def service() -> Iterator[Service]:
    it = Service(("127.0.0.1", 0), Handler)
    thread = Thread(target=it.serve_forever, args=(0.05,))
    thread.start()
    yield it
    it.shutdown()
    it.server_close()
    thread.join(10)


def run(service: Service) -> str:
    """What the demonstration prints."""
    made: list[Stack] = []

    def make(settings: Settings) -> Any:
        assert settings.models == ["emoji-mini"]
        made.append(Stack(service))
        return made[-1]

    out = console()
    try:
        demo(out, Settings(), make)
    finally:
        assert made[0].stopped
    return printed(out)


def test_it_embeds_compares_and_says_what_came_out(service: Service) -> None:
    text, count = run(service), len(SAMPLES)
    for line in (f"embedded {count} images in", f"embedded {count} words in", f"compared {count} images with {count}"):
        assert f"✓ {line}" in text
    assert f"✓ {count} of {count} images are nearest to their own word: over HTTP, through Valkey and Celery" in text
    assert f"{count} numbers each" in text
    assert "emoji-mini knows emoji pictures by their names and nothing of photographs" in text


def test_images_that_are_nearest_to_other_words_are_an_error(service: Service) -> None:
    service.texts = np.roll(UNIT, 1, axis=0)
    with pytest.raises(StackError, match=f"only 0 of {len(SAMPLES)} images are nearest to their own word"):
        run(service)


def test_comparisons_that_differ_from_the_embeddings_are_an_error(service: Service) -> None:
    service.off = 0.25
    with pytest.raises(StackError, match=r"/clip/compare and the cosines of the embeddings differ by 0\.250"):
        run(service)


def test_a_service_that_refuses_is_an_error(service: Service) -> None:
    service.status = 500
    with pytest.raises(StackError, match="the service did not answer as it should: Server error '500"):
        run(service)


def test_the_table_shows_as_many_samples_as_fit_and_marks_the_best() -> None:
    samples = [Sample(name, b"") for name in ("cat", "dog", "whale")]
    cosines = np.array([[0.9, 0.1, 0.2], [0.3, 0.4, 0.2], [0.1, 0.2, 0.8]], dtype=np.float32)
    wide, narrow = console(), console()
    wide.print(cosine_table(samples, cosines, 100))
    narrow.print(cosine_table(samples, cosines, 10))
    text = printed(wide)
    assert "cosine of each image (row) with each word (column)" in " ".join(text.split())
    assert [text.count(f"▸{best}") for best in ("0.90", "0.40", "0.80")] == [1, 1, 1]
    assert "2 of 3 fit here" in " ".join(printed(narrow).split())
    assert "whale" not in printed(narrow)


def test_the_samples_are_png_images_with_different_names() -> None:
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES) >= 4
    assert all(sample.png.startswith(b"\x89PNG") for sample in SAMPLES)


def test_items_are_sent_in_parts() -> None:
    assert list(parts([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
