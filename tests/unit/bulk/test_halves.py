"""The two halves of a row, its image and its text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from clip_queue.bulk.output.manifest import PlanOptions, RunPlan
from clip_queue.bulk.shard.halves import Embedded
from clip_queue.bulk.shard.pipeline import Pipeline
from clip_queue.shared.errors import BadImage
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import Row
from tests.unit.bulk.shards import (
    BOTH,
    IMAGE,
    IMAGES,
    INFO,
    TEXTS,
    Model,
    embedded,
    failures,
)


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


class Cutting:
    def __call__(self, text: str) -> np.ndarray:
        return Model().tokenizer(text)

    def cut(self, text: str) -> np.ndarray:
        return np.arange(min(8, len(text)))


def test_a_row_without_text_beside_its_image_has_zeros(engine: Any) -> None:
    both = replace(IMAGES, texts=True)
    rows = [Row({"caption": t}, image=IMAGE, text=t) for t in ("a", None, "ccc")]
    parts = embedded(engine, iter(rows), both)
    assert parts[0].vectors["text"][:, 0].tolist() == [1, 0, 3]
    assert parts[0].vectors["image"][:, 0].tolist() == [1, 1, 1]
    assert failures(embedded(engine, iter([Row({"caption": "x"})]), TEXTS)) == [("x", "bad_input")]


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
