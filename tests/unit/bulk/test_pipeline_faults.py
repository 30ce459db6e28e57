"""What fails a row, and what fails its shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clip_queue.shared.errors import BadImage, ClipError
from clip_queue.sources.source import Row, SourceAway, SourceError
from clip_queue.sources.storage import StoreAway
from tests.unit.bulk.shards import (
    IMAGE,
    IMAGES,
    embedded,
    failures,
    names,
    texts,
)


def test_what_keeps_every_row_back_ends_the_shard_instead_of_failing_them_all(engine: Any) -> None:
    def load() -> bytes:
        raise SourceError("no URL can be fetched")

    with pytest.raises(SourceError, match="no URL can be fetched"):
        embedded(engine, (Row({"caption": str(i)}, image=load) for i in range(8)), IMAGES)


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


def test_a_row_whose_vector_is_not_finite_fails_alone(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = engine.models["m"]

    def overflowing(texts: list[np.ndarray]) -> Any:
        lengths = np.array([[len(text)] for text in texts], dtype=np.float32)
        return SimpleNamespace(result=lambda: np.where(lengths == 3, np.inf, lengths))

    monkeypatch.setattr(model, "embed_texts", overflowing)
    parts = embedded(engine, texts("a", "bb", "ccc", "dddd", "eeeee"))
    assert names(parts) == ["a", "bb", "dddd", "eeeee"]
    assert [part.failed[1].message[:50] for part in parts if part.failed] == [
        "The model's vector of this item is not finite, so "
    ]


def test_a_batch_that_fails_is_halved_until_the_row_to_blame_stands_alone(engine: Any) -> None:
    engine.models["m"].fails = lambda batch: any(len(tokens) == 7 for tokens in batch)
    parts = embedded(engine, texts("a", "bb", "c" * 7, "dddd", "e"))
    assert names(parts) == ["a", "bb", "dddd", "e"]
    assert failures(parts) == [("c" * 7, "internal")]
