"""The contact sheet: one tile a hit, whatever becomes of its image."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_queue.bulk.search import contact_sheet as sheets
from clip_queue.bulk.search.contact_sheet import (
    GAP,
    HEADER,
    MARGIN,
    TILE,
    check,
    contact_sheet,
    fitted,
    font,
    loader,
    save,
    wrapped,
)
from clip_queue.bulk.search.index import Hit
from clip_queue.shared.errors import BadImage, BadInput
from clip_queue.shared.settings import Settings
from clip_queue.sources.source import Place, Source
from tests.images import bomb, noise_image

SOURCE = Source("/images", "folder", images=True, texts=False)
STEP = TILE + GAP


def hits(count: int) -> list[Hit]:
    return [Hit(n + 1, 0.9 - n / 100, 0, n, f"a/folder/of/images/{n:04}.png", None, {}) for n in range(count)]


def red(hit: Hit) -> Image.Image:
    return Image.new("RGB", (TILE, TILE // 2), "red")


@pytest.mark.parametrize(
    ("count", "across", "down"), [(0, 1, 0), (1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 3, 2), (12, 4, 3)]
)
def test_a_grid_of_the_hits(count: int, across: int, down: int) -> None:
    sheet = contact_sheet(hits(count), red, "a raccoon", "12 of 1,000 rows")
    height = HEADER + down * (STEP + sheets.CAPTION) - GAP + MARGIN
    assert (sheet.mode, sheet.size) == ("RGB", (2 * MARGIN + across * STEP - GAP, height))
    for n in range(count):
        x, y = MARGIN + n % across * STEP + TILE // 2, HEADER + n // across * (STEP + sheets.CAPTION)
        assert sheet.getpixel((x, y + TILE // 2)) == (255, 0, 0)
        assert sheet.getpixel((x, y + 10)) == (255, 255, 255), "letterboxed on white"


def test_images_stand_in_the_hits_order_however_long_they_take() -> None:
    def slow(hit: Hit) -> Image.Image:
        time.sleep(0.05 if hit.rank == 1 else 0)
        return Image.new("RGB", (10, 10), (hit.rank * 20, 0, 0))

    sheet = contact_sheet(hits(6), slow, "x")
    middles = [
        (MARGIN + n % 3 * STEP + TILE // 2, HEADER + n // 3 * (STEP + sheets.CAPTION) + TILE // 2) for n in range(6)
    ]
    assert [sheet.getpixel(at) for at in middles] == [(n * 20, 0, 0) for n in range(1, 7)]


def test_whatever_an_image_is_the_sheet_is_made() -> None:
    faults = [
        BadImage.because("Data is not image."),
        FileNotFoundError(2, "No such file or directory"),
        OSError(),
        RuntimeError("a store's client, at length: " + "x" * 500 + " and more " * 50),
        TimeoutError(),
    ]

    def load(hit: Hit) -> Image.Image:
        if hit.rank <= len(faults):
            raise faults[hit.rank - 1]
        return Image.new("L", (3, 200))

    sheet = contact_sheet(hits(6), load, "x")
    whites = np.asarray(sheet) == 255
    for n in range(5):
        x, y = MARGIN + n % 3 * STEP, HEADER + n // 3 * (STEP + sheets.CAPTION)
        tile = np.asarray(sheet)[y : y + TILE, x : x + TILE]
        assert tile.min() < 200, "a reason is written"
        assert tile[2, 2].tolist() == [243, 244, 246]
        around = whites[y : y + TILE, x + TILE + 1 : x + STEP - 1]
        assert around.all() or n % 3 == 2, "and stays in its tile"


def test_images_are_loaded_from_the_source_with_the_limits() -> None:
    images = {"good": noise_image(size=(900, 300)), "bomb": bomb(), "text": b"hello"}

    def find(source: Source, image_path: str, settings: Settings, place: Place | None) -> bytes:
        assert source is SOURCE
        return images[image_path]

    def hit(path: str | None) -> Hit:
        return Hit(1, 0.5, 0, 0, path, None, {})

    with loader(SOURCE, Settings(), find) as load:
        assert load(hit("good")).size == (TILE, TILE // 3)
        with pytest.raises(BadImage, match="over the limit of 50000000"):
            load(hit("bomb"))
        with pytest.raises(BadImage, match="not image"):
            load(hit("text"))
        with pytest.raises(BadInput, match="no image"):
            load(hit(None))


def test_an_image_that_takes_too_long_is_given_up() -> None:
    slow = noise_image(size=(1600, 1600), format="TIFF")  # a format of which no header tells the cost

    def find(source: Source, image_path: str, settings: Settings, place: Place | None) -> bytes:
        return slow

    with (
        loader(SOURCE, Settings(decode_timeout=0.001), find) as load,
        pytest.raises(BadImage, match=r"longer than 0.001 s \(setting decode_timeout\)"),
    ):
        load(Hit(1, 0.5, 0, 0, "slow.tif", None, {}))


def test_titles_of_any_length_and_script() -> None:
    odd = [Hit(1, -0.1, 0, 0, "x" * 5000, None, {}), Hit(2, 0, 0, 1, None, "a caption\nof lines", {}), *hits(2)]
    sheet = contact_sheet(odd, red, "浣熊 🦝 " * 200, "\x00\x1b[0m")
    assert (np.asarray(sheet)[:, -MARGIN + 1 :] == 255).all(), "nothing runs over the margin"


def test_lines_fit() -> None:
    small = font(13)
    for text in ("", "short", "a/very/long/path/" * 30, "W" * 3000):
        for tail in (False, True):
            line = fitted(text, small, 120, tail=tail)
            assert small.getlength(line) <= 120
            assert line in (text, line.replace(text, "…")) or "…" in line
    assert fitted("some/folder/name.png", small, 90, tail=True).endswith("name.png")
    assert fitted("some text that is long", small, 90).startswith("some")
    lines = wrapped("word " * 60, small, 120, 4)
    assert len(lines) == 4
    assert lines[-1].endswith("…")
    assert all(small.getlength(line) <= 120 for line in lines)
    assert wrapped("two words", small, 120, 4) == ["two words"]


@pytest.mark.parametrize("name", ["sheet.png", "sheet.JPG", "sheet.webp"])
def test_a_sheet_replaces_the_one_before(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    save(contact_sheet(hits(2), red, "x"), path)
    with Image.open(path) as saved:
        assert saved.size[0] > 0
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_one_before_stays_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def full(self: Image.Image, where: Path, *_: object, **__: object) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(Image.new("RGB", (1, 1)), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


def test_a_sheet_that_cannot_be_is_refused_beforehand(tmp_path: Path) -> None:
    check(tmp_path / "a.png", SOURCE, 12)
    texts = Source("/texts", "text", images=False, texts=True)
    for path, source, count, why in (
        (tmp_path / "a.png", texts, 12, "texts alone"),
        (tmp_path / "a.png", SOURCE, 401, "at most 400"),
        (tmp_path / "a.gif", SOURCE, 12, "ends in .png"),
        (tmp_path / "no" / "a.png", SOURCE, 12, "no folder"),
    ):
        with pytest.raises(BadInput, match=why):
            check(path, source, count)
