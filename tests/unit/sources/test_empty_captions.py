"""Captions that are all empty: no format embeds them, and none takes ``--texts`` for them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_queue.bulk.run.scope import scope_text
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.formats import folder
from clip_queue.sources.source import Source, SourceError
from tests.images import noise_image

EMPTY, MORE = ["", "  ", ""], ["", "", "a dog"]


def images(root: Path, captions: list[str]) -> None:
    for n, caption in enumerate(captions):
        (root / f"{n}.png").write_bytes(noise_image(n))
        (root / f"{n}.txt").write_text(caption)


def tar(root: Path, captions: list[str]) -> None:
    with tarfile.open(root / "0.tar", "w") as archive:
        for n, caption in enumerate(captions):
            for name, data in ((f"{n}.png", noise_image(n)), (f"{n}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def csv(root: Path, captions: list[str]) -> None:
    (root / "0.csv").write_text("image,caption\n" + "".join(f"{n}.png,{c}\n" for n, c in enumerate(captions)))


def jsonl(root: Path, captions: list[str]) -> None:
    (root / "0.jsonl").write_text(
        "".join(f'{{"image": "{n}.png", "caption": "{c}"}}\n' for n, c in enumerate(captions))
    )


def table(captions: list[str]) -> pa.Table:
    return pa.table({"image": [noise_image(n) for n in range(len(captions))], "caption": captions})


def parquet(root: Path, captions: list[str]) -> None:
    pq.write_table(table(captions), root / "0.parquet", row_group_size=1)


def lists(root: Path, captions: list[str]) -> None:
    several = pa.array([[None, caption] for caption in captions], pa.list_(pa.string()))
    pq.write_table(table(captions).set_column(1, "caption", several), root / "0.parquet")


def arrow(root: Path, captions: list[str]) -> None:
    made = table(captions)
    with pa.OSFile(str(root / "data-0.arrow"), "wb") as out, pa.ipc.new_stream(out, made.schema) as writer:
        writer.write_table(made, max_chunksize=1)


MAKE: dict[str, tuple[str, Callable[[Path, list[str]], None]]] = {
    "folder": ("folder", images),
    "tar": ("webdataset", tar),
    "csv": ("csv", csv),
    "jsonl": ("jsonl", jsonl),
    "parquet": ("parquet", parquet),
    "parquet with lists": ("parquet", lists),
    "arrow": ("arrow", arrow),
}


@pytest.mark.parametrize("kind", MAKE)
def test_texts_that_are_all_empty_are_none(tmp_path: Path, kind: str) -> None:
    format, make = MAKE[kind]

    def planned(texts: bool | None) -> Source:
        source, shards = registry.plan_shards(Source(str(tmp_path), format, texts=texts), 2, Settings())
        list(shards)
        return source

    make(tmp_path, EMPTY)
    assert planned(None).texts is False
    assert scope_text(planned(None)).startswith("images only")
    with pytest.raises(SourceError, match="caption"):
        planned(True)
    make(tmp_path, MORE)
    assert planned(None).texts is True, "one caption is enough, wherever it stands"
    assert planned(True).texts is True


def test_of_many_empty_captions_not_all_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "EMPTY_CAPTIONS", 2)
    images(tmp_path, EMPTY)
    source, _ = registry.plan_shards(Source(str(tmp_path), "folder"), 2, Settings())
    assert source.texts is True, "there may be more of them than can be read beforehand: the report counts them"


def test_a_caption_that_is_no_text_counts_as_one(tmp_path: Path) -> None:
    images(tmp_path, EMPTY)
    (tmp_path / "1.txt").write_bytes(b"\xff")
    source, _ = registry.plan_shards(Source(str(tmp_path), "folder"), 2, Settings())
    assert source.texts is True, "its row will say what is wrong"
