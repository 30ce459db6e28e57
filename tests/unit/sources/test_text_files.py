"""Files of lines that are compressed, in another encoding, or a JSON array: the same rows as of the plain file."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest

from clip_queue.shared.errors import ClipError
from clip_queue.sources.detect import detect
from clip_queue.sources.formats import text_files
from clip_queue.sources.source import SourceError
from tests.images import noise_image
from tests.unit.sources.tables import errors, find, planned, read_all, refusal, rows
from tests.unit.sources.test_unpacking import PACK

NAMES = {"gzip": "gz", "bz2": "bz2", "xz": "xz", "zstd": "zst", "lz4": "lz4"}
DATA = {
    "text": "".join(f"line {n}\n" for n in range(10)).encode(),
    "csv": ("n,text\n" + "".join(f'{n},"li\nne {n}"\n' for n in range(10))).encode(),
    "jsonl": "".join(f'{{"n": {n}, "text": "line {n}"}}\n' for n in range(10)).encode(),
    "json": json.dumps([{"n": n, "text": f"line {n}"} for n in range(10)], indent=1).encode(),
}
SUFFIX = {"text": "txt", "csv": "csv", "jsonl": "jsonl", "json": "json"}


@pytest.mark.parametrize("codec", PACK)
@pytest.mark.parametrize("format", DATA)
def test_a_compressed_file_has_the_rows_of_the_file(tmp_path: Path, memory: Any, format: str, codec: str) -> None:
    name = f"a.{SUFFIX[format]}.{NAMES[codec]}"
    (tmp_path / name).write_bytes(PACK[codec](DATA[format]))
    (tmp_path / f"b.{SUFFIX[format]}").write_bytes(DATA[format])
    memory.pipe(f"/d/{name}", (tmp_path / name).read_bytes())
    assert detect(str(tmp_path)) == detect(f"memory://d/{name}") == format
    found = rows(tmp_path, format)
    assert [row.text for row in found[:10]] == [row.text for row in found[10:]]
    assert len(found) == 20
    assert [row.text for row in rows(f"memory://d/{name}", format)] == [row.text for row in found[:10]]


def test_what_cannot_be_unpacked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(PACK["gzip"](DATA["jsonl"])[:-12])
    assert refusal(path, "jsonl") == "a.jsonl.gz cannot be read: it cannot be unpacked: Truncated compressed stream"
    path.write_bytes(PACK["gzip"](DATA["jsonl"]))
    source, shards = planned(path, "jsonl")
    path.write_bytes(PACK["gzip"](DATA["jsonl"] * 2))
    with pytest.raises(SourceError, match="has changed"):
        read_all(source, shards, 3)
    monkeypatch.setattr(text_files, "LIMIT", 100)
    assert "MiB unpacked: make a plain file" in refusal(path, "jsonl")


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "latin-1", "utf-32-be", "utf-8-sig"])
@pytest.mark.parametrize("format", DATA)
def test_another_encoding(tmp_path: Path, format: str, encoding: str) -> None:
    text = DATA[format].decode().replace("li\nne 3", "line 3").replace("line 3", "naïve café")
    (tmp_path / f"a.{SUFFIX[format]}").write_bytes(text.encode(encoding))
    found = rows(tmp_path, format, storage={"encoding": encoding})
    assert found[3].text == "naïve café"
    assert not errors(found)


def test_what_is_not_of_the_encoding_costs_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\nt\x81wo\nthree\n")
    found = rows(tmp_path, "text", storage={"encoding": "cp1252"})
    assert [row.text for row in found] == ["one", None, "three"]
    assert "UTF-16: say so with the encoding" in refusal_of(tmp_path, "é".encode("utf-16"))


def refusal_of(folder: Path, data: bytes) -> str:
    (folder / "b.txt").write_bytes(data)
    return refusal(folder / "b.txt", "text")


@pytest.mark.parametrize("block", [1, 7, 2**20])
def test_a_json_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(text_files, "BLOCK", block)
    path = tmp_path / "a.json"
    values = [{"text": 'a\n[{]},\\"é😀'}, {"text": "b", "deep": [[1, {"x": None}], -1.5e3]}, 12, "x", {"text": "c"}]
    for indent in (None, 2):
        path.write_text("\ufeff \n" + json.dumps(values, indent=indent, ensure_ascii=False) + "\n")
        found = rows(path, "json")
        assert [row.text for row in found] == ['a\n[{]},\\"é😀', "b", None, None, "c"]
    path.write_text('{"text": "a"}\n{"text": "b"}')  # what many call .json
    assert [row.text for row in rows(path, "json")] == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ('[{"text": "a"}, {"text": "b"', "its element 2 is cut off"),
        ('[{"text": "a"} {"text": "b"}]', "a comma is missing after its element 1"),
        ("[" * 100_000, "its element 1 is cut off, broken or too large"),
        ('[{"text": "a"}, oops]', "its element 2"),
        ("[]", "no line at its beginning is a JSON object"),
    ],
)
def test_a_json_array_that_is_none(tmp_path: Path, data: str, says: str) -> None:
    (tmp_path / "a.json").write_text(data)
    assert says in refusal(tmp_path / "a.json", "json")


def test_images_in_base64_and_data_uris(tmp_path: Path) -> None:
    images = [noise_image(n, format=format) for n, format in enumerate(("PNG", "JPEG", "WEBP", "GIF"))]
    texts = [b64encode(image).decode() for image in images]
    texts[1] = urlsafe_b64encode(images[1]).decode().rstrip("=")
    texts[2] = f"data:image/webp;base64,{texts[2]}"
    lines = [json.dumps({"image": text, "n": n}) for n, text in enumerate(texts)]
    lines += ['{"image": "data:text/plain,hello"}', '{"image": "/9j/a.jpg"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "a.csv").write_text("n,img\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)))
    for format, asked in (("jsonl", {}), ("csv", {"image_column": "img"})):
        source, shards = planned(tmp_path / f"a.{format}", format, **asked)  # type: ignore[arg-type]
        found = read_all(source, shards, 3)
        assert [row.image for row in found[:4]] == images
        assert [row.columns["image_path"] for row in found[:4]] == [f"a.{format}#{n}" for n in range(4)]
        assert not any(str(value)[:20] in texts[0] for value in found[0].columns.values() if len(str(value)) > 20)
        for number in range(4):
            assert find(source, f"a.{format}#{number}") == images[number]
        with pytest.raises(ClipError):
            find(source, f"a.{format}#40")
    found = rows(tmp_path / "a.jsonl", "jsonl")
    assert "not base64" in errors(found)[4]
    assert found[5].columns["image_path"] == "/9j/a.jpg"


def test_of_several_captions_the_first_is_embedded_and_all_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"caption": [" ", "one", "two"]}\n{"caption": "x"}\n{"caption": []}\n{"caption": [1]}'
    )
    found = rows(tmp_path, "jsonl", 4)
    assert [row.text for row in found] == ["one", "x", None, None]
    assert found[0].columns["source_caption"] == '[" ","one","two"]'
    assert errors(found)[3] == "The row's text is a int, no text."


def test_images_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_text("image\na.png\n")
    source, shards = planned(tmp_path / "tables", "csv", storage={"image_root": str(tmp_path / "images")})
    (row,) = read_all(source, shards, 3)
    assert callable(row.image)
    assert row.image() == find(source, "a.png") == b"a"
