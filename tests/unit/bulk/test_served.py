"""What a served output shows of a row, and which pictures it serves."""

from __future__ import annotations

import io
from datetime import date
from decimal import Decimal

import pytest
from PIL import Image

from clip_queue.bulk.search.picture import type_of
from clip_queue.bulk.search.served import MAX_COLUMNS, MAX_TEXT, _metadata, _not_served, _within
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import PLACES
from clip_queue.sources.source import Source


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF"])
def test_pictures_that_browsers_show_are_known_by_their_bytes(format: str) -> None:
    if format.lower() not in {name.removeprefix(".") for name in Image.registered_extensions()}:
        pytest.skip(f"this Pillow writes no {format}")
    file = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(file, format)
    assert type_of(file.getvalue()) == f"image/{format.lower()}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"B",
        b"BM and a text that is no picture at all, as may be",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<!doctype html><p>x",
        b"%PDF-1.7",
        b"\xef\xbb\xbf<svg/>",
        b"RIFF\0\0\0\0WAVE",
        b"\0\0\0 ftypheic",
        b"II*\0",
        b"GIF8<script>",
    ],
)
def test_everything_else_is_no_picture(data: bytes) -> None:
    assert type_of(data) is None


def test_metadata_lose_what_cannot_be_shown() -> None:
    shown = _metadata(
        {
            "text": "x" * (MAX_TEXT + 1),
            "half": "\ud83d",
            "url": "https://me:secret@example.org/a.png?signature=1",
            "inline": "data:image/png;base64,AAAA",
            "bytes": b"x",
            "list": [1],
            "nan": float("nan"),
            "big": 2**60,
            "day": date(2026, 1, 2),
            "money": Decimal("1.50"),
            "flag": False,
            "none": None,
            "source_file": "a",
            "source_row": 1,
        }
    )
    assert shown["text"] == "x" * (MAX_TEXT - 1) + "…"
    assert shown["url"] == "https://example.org/a.png"
    assert shown == {**shown, "half": "?", "big": str(2**60), "day": "2026-01-02", "money": "1.50", "flag": False}
    assert shown.keys() == {"text", "half", "url", "big", "day", "money", "flag"}
    assert len(_metadata({str(i): i for i in range(1000)})) == MAX_COLUMNS


@pytest.mark.parametrize(
    ("url", "format", "path", "file", "served"),
    [
        ("/d", "folder", "a.png", "a.png", True),
        ("/d", "folder", "a.tgz/a.png", "a.tgz/a.png", True),  # a folder of that name
        ("/d", "webdataset", "t.tar/a.png", "t.tar", True),
        ("/d", "webdataset", "t.tar.gz/a.png", "t.tar.gz", False),
        ("/d", "webdataset", "t.TGZ/a.png", "t.TGZ", False),
        ("/d", "zip", "t.zip/a.png", "t.zip", True),
        ("/d", "csv", "a.csv.gz#1", "a.csv.gz", False),
        ("/d", "csv", "https://example.org/a.png", "a.csv.gz", True),
        ("/d", "text", "a", "a.txt", False),
    ],
)
def test_pictures_whose_reading_is_not_bounded_are_not_served(
    url: str, format: str, path: str, file: str, served: bool
) -> None:
    source = Source(url, format, images=True, storage={PLACES: True})
    columns = {"source_file": file, "source_row": 0}
    assert (_not_served(source, path, columns) is None) is served
    assert _not_served(source, None, columns)
    assert _not_served(Source(url, format, images=False), path, columns)


def test_pictures_lie_in_the_source_or_where_the_settings_allow() -> None:
    settings = Settings(bulk_sources="/more")  # type: ignore[arg-type]
    assert _within(Source("/d/e", "folder"), settings) == ("/d/e", "/more")
    table = Source("/d/a.csv", "csv", storage={"root": "/d", "image_root": "/pictures"})
    assert _within(table, settings) == ("/d", "/pictures", "/more")
