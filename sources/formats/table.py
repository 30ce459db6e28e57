"""The parts that the formats with columns share: how a row is made, and how its image is found again."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from clip_queue.shared.errors import BadInput, ClipError
from clip_queue.shared.settings import Settings
from clip_queue.sources.columns import LEFT_OUT, holds_something, is_encodable, item_of, name_in
from clip_queue.sources.confinement import roots_in
from clip_queue.sources.discovery import containers, name
from clip_queue.sources.image_references import is_inline, load, load_below
from clip_queue.sources.source import IMAGE_HALF, TEXT_HALF, BrokenContainer, Place, Row, Source, SourceError
from clip_queue.sources.storage import spellings, split

_WITHIN = re.compile(r"(.*)#([0-9]+)(?:\[([0-9]+)\])?", re.DOTALL)  # what Table.where gives


class Table:
    """One file of a source. Its rows are numbered from 0."""

    def __init__(self, source: Source, path: bytes, settings: Settings) -> None:
        self.name = name(source.storage["root"], path)
        self.protocol, _ = split(source.url)
        self._source = source
        self._base = _base(source) or (self.protocol, posixpath.dirname(path))
        self._settings = settings
        self._roots = roots_in(source)
        column = source.image_column or ""
        plain = name_in(source, column) in source.columns
        self._image_name = name_in(source, column if plain else item_of(column, ())[0])  # that keeps the images' paths
        self._left_out = [(kind, name_in(source, column)) for kind, column in source.storage.get(LEFT_OUT, {}).items()]

    def where(self, number: int, item: int | None = None) -> str:
        """The ``image_path`` of a row whose image has no path: the file, the row's number, and of several images which
        it is."""
        return f"{self.name}#{number}" if item is None else f"{self.name}#{number}[{item}]"

    def row(
        self,
        number: int,
        own: dict[str, Any],
        image: object,
        text: object,
        path: str | None = None,
        item: int | None = None,
    ) -> Row:
        """A row from its values.

        Args:
            number: its place in the file, from 0.
            own: the values of the source's own columns.
            image, text: the values of the columns of images and texts.
            path: the path of an encoded image, if it has one.
            item: which of the row's images it is, if the row may hold several.
        """
        source = self._source
        columns: dict[str, Any] = {"image_path": path or self.where(number, item), "caption": None, **own}
        left_out = tuple(kind for kind, name in self._left_out if holds_something(own.get(name)))
        row = Row(columns, place=Place(self.name, number, item), left_out=left_out)
        if source.images:
            if isinstance(image, str) and is_inline(image):
                columns.update(dict.fromkeys(columns.keys() & {self._image_name}))  # as of bytes
            elif isinstance(image, str) and image.strip():
                columns["image_path"] = image
            try:
                row.image = load(image, *self._base, self._settings, self._roots)
            except ClipError as error:
                row.faults[IMAGE_HALF] = error
        if source.texts:
            try:
                row.text = columns["caption"] = text_of(text)
                if row.text is None and not source.images:
                    raise BadInput("The row has no text.")
            except ClipError as error:
                row.faults[TEXT_HALF] = error
        return of_halves(row, source)

    def broken(self, number: int, error: ClipError) -> Row:
        """A row of which only the place is known."""
        columns = {"image_path": self.where(number), "caption": None}
        return Row(columns, error=error, place=Place(self.name, number))

    def lost(self, start: int, stop: int, why: str) -> Iterator[Row]:
        """The rows from ``start`` to ``stop``, which are lost: the part of the file that holds them cannot be read."""
        for number in range(start, stop):
            yield self.broken(number, BrokenContainer(f"{self.name} {why}: {stop - start} rows are lost"))


def of_halves(row: Row, source: Source) -> Row:
    """A row; where a fault leaves neither half of it to embed, it is at fault as a whole."""
    if not (source.images and row.image is not None) and not (source.texts and row.text is not None):
        row.error = next(iter(row.faults.values()), None)
    return row


def changed(table: Table) -> SourceError:
    """The error for a file that is not the one that was planned."""
    return SourceError(f"{table.name} has changed since it was planned: choose another output")


def text_of(value: object) -> str | None:
    """A row's text; None if it has none, or only white space. Raises :class:`BadInput` if the value is no text."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise BadInput("The row's text is not UTF-8.") from None
    if isinstance(value, list):  # several captions: the first that says something
        value = next((each for each in value if (each.strip() if isinstance(each, str) else each is not None)), None)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadInput(f"The row's text is a {type(value).__name__}, no text.")
    if not is_encodable(value):
        raise BadInput("The row's text holds half of a character (a lone surrogate), as a cut emoji does.")
    return value if value.strip() else None


def holds_text(value: object) -> bool:
    """Whether a row's value is a text that says something, or one that cannot be understood."""
    try:
        return text_of(value) is not None
    except BadInput:
        return True


def find_by_path(
    source: Source, image_path: str, suffixes: tuple[str, ...], settings: Settings, place: Place | None = None
) -> bytes:
    """The image of a row whose column names the image's path or URL; by its table's folder, where ``place`` tells it.

    Raises:
        ClipError: the image cannot be loaded.
        OSError: it cannot be read.
    """
    if base := _base(source):
        return load_below(image_path, base[0], [base[1]], settings)
    if place is None:
        folders = _folders(source.url, suffixes)
    else:
        folders = [posixpath.dirname(path) for path in files_at(source, place)]
    return load_below(image_path, split(source.url)[0], folders, settings)


def files_at(source: Source, place: Place) -> list[bytes]:
    """The paths that a row's file can have: its name may be shown with escapes. None leads out of the source."""
    if ".." in place.file.split("/"):
        raise BadInput(f"{place.file} is not in {source.shown}")
    folder = os.fsencode(source.storage["root"])
    return [folder + b"/" + spelling for spelling in spellings(place.file)]


def container_of(source: Source, image_path: str, suffixes: tuple[str, ...]) -> tuple[bytes, int, int] | None:
    """The file, the row's number, and which of its images an ``image_path`` means; None: :meth:`Table.where` has not
    made it."""
    place = _WITHIN.fullmatch(image_path)
    if not place:
        return None
    found = (path for path in _files(source.url, suffixes) if name(source.storage["root"], path) == place[1])
    return next(((path, int(place[2]), int(place[3] or 0)) for path in found), None)


def _base(source: Source) -> tuple[str, bytes] | None:
    """Protocol and folder that images' paths are relative to, where they are not relative to their table's folder."""
    if (asked := source.storage.get("image_root")) is None:
        return None
    protocol, folder = split(asked)
    return protocol, os.fsencode(folder)


def forget_files() -> None:
    """Look at the sources' tables again when an image is asked for next."""
    _folders.cache_clear()
    _files.cache_clear()


@lru_cache(maxsize=4)
def _folders(url: str, suffixes: tuple[str, ...]) -> list[bytes]:
    """The folders of a source's tables."""
    return list(dict.fromkeys(posixpath.dirname(path) for path in _files(url, suffixes)))


@lru_cache(maxsize=4)
def _files(url: str, suffixes: tuple[str, ...]) -> list[bytes]:
    return [path for path, _ in containers(url, suffixes)]
