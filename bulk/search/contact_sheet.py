"""A contact sheet: the images of hits in a grid, on white, with rank, score and name under each."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from clip_queue.bulk.search.index import Hit
from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources import registry
from clip_queue.sources.place import place_of
from clip_queue.sources.source import Place, Source
from clip_queue.worker.inference.decode import preprocessed, to_rgb
from clip_queue.worker.inference.decode_helpers import DecodeHelpers
from clip_queue.worker.inference.image_limits import Limits, examine

TILE = 220  # pixels, a side
GAP, MARGIN = 20, 32
CAPTION = 50  # pixels under a tile
HEADER = 92  # pixels above the first row
MAX_TILES = 400  # tiles
LOAD_THREADS = 4  # images decoded at once: each may take 150 MB while it is

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

PAPER, INK, GREY, FRAME, EMPTY = "#ffffff", "#111827", "#6b7280", "#e5e7eb", "#f3f4f6"

Load = Callable[[Hit], Image.Image]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


FindImage = Callable[[Source, str, Settings, Place | None], bytes]


@contextmanager
def loader(source: Source, settings: Settings, find_image: FindImage = registry.find_image) -> Iterator[Load]:
    """What loads a hit's image, no larger than a tile, from the source that the output was made of.

    The limits are a worker's: an image whose cost is not known to be small is decoded by a process that is ended after
    ``decode_timeout``. What is yielded raises :class:`ClipError` or :class:`OSError`.
    """
    limits = Limits(settings.max_image_bytes, settings.max_image_pixels, settings.max_image_work)
    with closing(DecodeHelpers(LOAD_THREADS, limits, settings.decode_timeout)) as helpers:

        def load(hit: Hit) -> Image.Image:
            if hit.image_path is None:
                raise BadInput("The row has no image.")
            encoded = find_image(source, hit.image_path, settings, place_of(source, hit.columns))
            file = examine(encoded, limits)
            image = to_rgb(file, limits, 2 * TILE) if file.in_thread else helpers.to_rgb(encoded, 2 * TILE)
            return Image.fromarray(preprocessed(image, _fitted))

        yield load


def contact_sheet(hits: Sequence[Hit], load: Load, title: str, note: str = "") -> Image.Image:
    """The sheet, RGB. For an image that cannot be loaded, the tile shows why."""
    across = max(1, min(len(hits), max(3, round(math.sqrt(len(hits) * 4 / 3)))))
    down = math.ceil(len(hits) / across)
    width = 2 * MARGIN + across * (TILE + GAP) - GAP
    height = HEADER + down * (TILE + CAPTION + GAP) - GAP + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 24), fitted(title, font(26), width - 2 * MARGIN), INK, font(26))
    draw.text((MARGIN, 58), fitted(note, font(13), width - 2 * MARGIN), GREY, font(13))
    with ThreadPoolExecutor(LOAD_THREADS) as pool:
        tiles = pool.map(lambda hit: _tried(load, hit), hits)
        for place, (hit, tile) in enumerate(zip(hits, tiles, strict=True)):
            x = MARGIN + place % across * (TILE + GAP)
            y = HEADER + place // across * (TILE + CAPTION + GAP)
            _draw_tile(sheet, draw, x, y, tile)
            _draw_caption(draw, x, y + TILE + 8, hit)
    return sheet


def save(sheet: Image.Image, path: Path) -> None:
    """Write the sheet. An older file of that name is replaced in one step. Raises :class:`OSError`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        sheet.save(temporary, FORMATS[path.suffix.lower()], quality=90)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check(path: Path, source: Source, count: int) -> None:
    """Raise :class:`BadInput` if ``count`` images of a source cannot make a sheet of that name."""
    if not source.images:
        raise BadInput("the output is of texts alone: there is nothing to show on a --sheet")
    if count > MAX_TILES:
        raise BadInput(f"a sheet holds at most {MAX_TILES} images, not {count}: lower --top, or leave out --sheet")
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"a sheet's name ends in {', '.join(FORMATS)}; {path} does not")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"there is no folder {path.parent} to write the sheet to")


def fitted(text: str, font: Font, width: float, *, tail: bool = False) -> str:
    """``text`` on one line of ``width`` pixels, shortened at its end, or (``tail``) at its beginning."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    fits, too_long = 0, min(len(text), 1000)  # characters; no line here holds a thousand
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if font.getlength(_cut(text, middle, tail)) <= width:
            fits = middle
        else:
            too_long = middle
    return _cut(text, fits, tail)


def wrapped(text: str, font: Font, width: float, lines: int) -> list[str]:
    """``text`` on at most ``lines`` lines of ``width`` pixels, broken at spaces, the last shortened."""
    words, out = text.split(), list[str]()
    while words and len(out) < lines - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        out.append(fitted(" ".join(words[:count]), font, width))
        words = words[count:]
    return [*out, fitted(" ".join(words), font, width)] if words else out


@lru_cache(maxsize=8)
def font(size: int) -> Font:
    return ImageFont.load_default(size=size)


def _cut(text: str, count: int, tail: bool) -> str:
    return "…" + text[len(text) - count :].lstrip() if tail else text[:count].rstrip() + "…"


def _fitted(image: Image.Image) -> Image.Image:
    """The whole image, as large as fits in a tile."""
    return ImageOps.contain(image, (TILE, TILE), Image.Resampling.LANCZOS)


def _tried(load: Load, hit: Hit) -> Image.Image | str:
    """A hit's image, or why it cannot be loaded."""
    try:
        return load(hit)
    except ClipError as error:
        return error.message.removeprefix("Could not load input image. Cause: ")
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    except Exception as error:  # a bug: the sheet is made all the same, and the tile names the error
        return f"{type(error).__name__}: {error}"


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, tile: Image.Image | str) -> None:
    box = (x - 1, y - 1, x + TILE, y + TILE)
    if isinstance(tile, Image.Image):
        image = _fitted(tile.convert("RGB"))
        sheet.paste(image, (x + (TILE - image.width) // 2, y + (TILE - image.height) // 2))
        draw.rectangle(box, outline=FRAME)
        return
    draw.rectangle(box, fill=EMPTY, outline=FRAME)
    lines = wrapped(tile, font(13), TILE - 32, lines=8)
    for number, line in enumerate(lines):
        at = (x + TILE / 2, y + TILE / 2 + (number - (len(lines) - 1) / 2) * 18)
        draw.text(at, line, GREY, font(13), anchor="mm")


def _draw_caption(draw: ImageDraw.ImageDraw, x: int, y: int, hit: Hit) -> None:
    """Rank and score on one line, the name under them."""
    draw.text((x, y), str(hit.rank), INK, font(15))
    draw.text((x + TILE, y), f"{hit.score:.3f}", INK, font(15), anchor="ra")
    name = (
        fitted(hit.image_path, font(13), TILE, tail=True)
        if hit.image_path
        else fitted(hit.caption or "", font(13), TILE)
    )
    draw.text((x, y + 21), name, GREY, font(13))
