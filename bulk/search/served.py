"""An output as the service searches it: pages of hits, the pictures of its rows, and looking again when it changes."""

from __future__ import annotations

import math
import os
import time
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from clip_queue.bulk.output.layout import MANIFEST
from clip_queue.bulk.output.table_layout import place, row_id
from clip_queue.bulk.search.index import Hit, Index
from clip_queue.bulk.search.picture import type_of
from clip_queue.shared.errors import BadInput, ClipError, Unavailable
from clip_queue.shared.models import ModelInfo
from clip_queue.shared.roots import folder_of
from clip_queue.shared.searches import NoPicture, OtherModel, UnknownRow
from clip_queue.shared.settings import Settings
from clip_queue.shared.vectors import Vector
from clip_queue.sources import confinement, registry
from clip_queue.sources.confinement import LeadsOutside
from clip_queue.sources.image_references import is_inline, is_web, redacted
from clip_queue.sources.place import COLUMNS, place_of
from clip_queue.sources.registry import IMAGE_FOLDER, PACKED
from clip_queue.sources.source import Source
from clip_queue.sources.storage import LOCAL, split

WATCHED = (MANIFEST, "shards", "index")  # what changes with an output: a file replaced, a folder that gets another file
REST = 10  # times as long as opening took, an output that changes all the time is searched as it was
MAX_TEXT = 2000  # characters of a text in a hit
MAX_COLUMNS = 64  # of the source's own in a hit

Answer = tuple[dict[str, Any], bytes]
# Ends of names of what is unpacked from its start; a zip has a table of its members.
_PACKED_ENDS = (*(set(PACKED) - {".zip"}), ".tgz", ".tbz2", ".tbz", ".txz", ".tzst")


class ServedOutput:
    """An output that is searched again and again; for one thread."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Raises :class:`BadInput` where there is no output, and :class:`OSError`."""
        if not folder.is_dir():
            raise BadInput(f"there is no folder {folder}")
        self._folder, self._settings = folder, settings
        self._index: Index | None = None
        self._problem = ""
        self._open()

    @property
    def model(self) -> ModelInfo | None:
        """The model that made the vectors; None: the output cannot be read now."""
        return self._index.model if self._index else None

    def about(self) -> dict[str, Any]:
        """Model and number of rows; of an output none of whose shards is finished, 0."""
        self._renew()
        if self._index is None:
            return {"model": None, "fingerprint": None, "rows": 0, "among": None, "problem": self._problem}
        model = self._index.model
        return {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "rows": self._index.rows,
            "among": self._index.among,
            "problem": "",
        }

    def page(self, query: Vector | int, offset: int, limit: int, fingerprint: str | None = None) -> Answer:
        """Hits ``offset`` to ``offset + limit`` for a unit vector, or for a row, which is no hit itself.

        ``fingerprint``: of the model that made the vector.

        Raises:
            OtherModel: the output's vectors are of another model.
            UnknownRow, BadInput: there is no such row, or the vector has another length.
            Unavailable: the output cannot be read.
        """
        self._renew()
        made_by = self._opened.model.fingerprint
        if fingerprint not in (None, made_by):
            raise OtherModel(f"The output's vectors have fingerprint {made_by}, the query's has {fingerprint}.")
        try:
            return self._page(query, offset, limit)
        except (BadInput, OSError):
            if not self._changed:
                raise
        self._open()  # it was being changed
        return self._page(query, offset, limit)

    def picture(self, row: int) -> Answer:
        """A row's encoded picture, and its type.

        Raises:
            UnknownRow: there is no such row.
            NoPicture: it has none that is served.
        """
        self._renew()
        index = self._opened
        shard, number = self._place(row)
        columns = index.stored.metadata(shard, [number])[number]
        path, source = columns.get("image_path"), index.plan.source
        if (why := _not_served(source, path, columns)) is not None:
            raise NoPicture(why)
        assert isinstance(path, str)
        confinement.confine(_within(source, self._settings))
        try:
            data = registry.find_image(source, path, self._settings, place_of(source, columns))
        except LeadsOutside:
            raise NoPicture(
                "The picture lies outside of the source's folder, where nothing is served from (setting bulk_sources "
                "allows other places)."
            ) from None
        except FileNotFoundError:
            raise NoPicture("The picture's file is not there any more.") from None
        except OSError as error:
            raise NoPicture(f"The picture cannot be read ({error.strerror or type(error).__name__}).") from None
        except ClipError as error:
            raise NoPicture(_cause(error)) from None
        except ValueError:  # what the metadata hold is no path: NUL, half of a character
            raise NoPicture("The picture cannot be read from its source.") from None
        if len(data) > self._settings.max_image_bytes:
            raise NoPicture("The picture is larger than is served (setting max_image_bytes).")
        if (media_type := type_of(data)) is None:
            raise NoPicture("The row's file is no picture that a browser shows (JPEG, PNG, GIF, WebP, BMP, AVIF).")
        return {"type": media_type}, data

    # The index, and when to open it again

    @property
    def _opened(self) -> Index:
        if self._index is None:
            raise Unavailable(f"The output cannot be searched now: {self._problem}.", retry_after=5)
        return self._index

    @property
    def _changed(self) -> bool:
        return self._seen != self._signature()

    def _signature(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for name in WATCHED:
            try:
                at = (self._folder / name).stat()
                found.append((at.st_ino, at.st_mtime_ns, at.st_size))
            except OSError:
                found.append(None)
        return found

    def _renew(self) -> None:
        """Open the output again if it has changed; while it changes all the time, now and then."""
        if self._changed and time.monotonic() - self._at >= REST * self._cost:
            try:
                self._open()
            except (BadInput, OSError) as error:
                self._index, self._problem = None, _in_words(error)

    def _open(self) -> None:
        self._seen = self._signature()
        began = time.monotonic()
        registry.forget_files()
        try:
            self._index, self._problem = Index(str(self._folder)), ""
        except BadInput as error:
            self._index, self._problem = None, _in_words(error)
            if not (self._folder / "shards").is_dir() and not (self._folder / MANIFEST).is_file():
                raise
        finally:
            self._at = time.monotonic()
            self._cost = self._at - began

    # Hits

    def _page(self, query: Vector | int, offset: int, limit: int) -> Answer:
        index = self._opened
        if isinstance(query, int):
            shard, number = self._place(query)
            vector = index.stored.vectors(shard, [number])[0]
            length = float(np.linalg.norm(vector))
            if not math.isfinite(length) or not length:
                raise BadInput("The row has no vector to search by: it has no image, or no text.")
            hits = index.nearest(vector / length, offset + limit + 2)
            hits = [hit for hit in hits if (hit.shard, hit.row) != (shard, number)]
        else:
            if len(query) != index.model.dimension:
                raise BadInput(f"The query has {len(query)} numbers, the output's vectors {index.model.dimension}.")
            hits = index.nearest(query, offset + limit + 1)
        shown = [self._hit(index.plan.source, hit) for hit in hits[offset : offset + limit]]
        return {"hits": shown, "more": len(hits) > offset + limit, "rows": index.rows, "model": index.model.name}, b""

    def _place(self, row: int) -> tuple[int, int]:
        shard, number = place(row)
        if number >= self._opened.rows_of(shard):
            raise UnknownRow(f"There is no row {row}.")
        return shard, number

    def _hit(self, source: Source, hit: Hit) -> dict[str, Any]:
        path = hit.image_path
        return {
            "row": row_id(hit.shard, hit.row),
            "score": round(hit.score, 6) + 0.0,
            "caption": None if hit.caption is None else _text(hit.caption),
            "image_path": None if path is None or is_inline(path) else _text(redacted(path)),
            "has_image": _not_served(source, path, hit.columns) is None,
            "metadata": _metadata(hit.columns),
        }


def _metadata(columns: dict[str, Any]) -> dict[str, Any]:
    """The source's own columns that can be shown: texts, shortened, numbers, times. Lists, objects and bytes are left
    out, and images in base64; a URL loses what may be a signature."""
    own = {name: _value(value) for name, value in columns.items() if name not in COLUMNS}
    return dict([(name, value) for name, value in own.items() if value is not None][:MAX_COLUMNS])


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return None if is_inline(value) else _text(redacted(value))
    if isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, (datetime, date, time_of_day)):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else None


def _text(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


# Pictures


def _not_served(source: Source, path: Any, columns: dict[str, Any]) -> str | None:
    """Why a row's picture is not served, as far as that is known without looking; None: it may be."""
    if not isinstance(path, str) or source.format == "text":
        return "The row has no picture."
    if not source.images:
        return "The output was made without pictures."
    local = "://" not in source.url or split(source.url)[0] == LOCAL
    known = place_of(source, columns)
    container = known.file if known else path.partition("#")[0]
    own_file = source.format == IMAGE_FOLDER or is_web(path)
    if not local and not own_file:
        return "Pictures inside of files in a store are not served: finding one may read all of the file."
    if not own_file and container.lower().endswith(_PACKED_ENDS):
        return "Pictures in compressed files are not served: finding one unpacks all before it."
    return None


def _within(source: Source, settings: Settings) -> tuple[str, ...]:
    """What a picture must really lie in, with all links followed: the source's folder and its folder of images, or what
    the settings allow."""
    if (root := source.storage.get("root")) is None:
        root = folder_of(source.url)
    root = (
        root if "://" in str(root) or "://" not in source.url else f"{split(source.url)[0]}://{str(root).lstrip('/')}"
    )
    image_root = source.storage.get("image_root")
    places = [os.fspath(root).rstrip("/") or "/", *([image_root] if image_root else []), *settings.bulk_sources]
    return tuple(places)


def _cause(error: ClipError) -> str:
    """Why an image cannot be had, without a path of this machine."""
    if type(error).code == "bad_image":
        return error.message
    return "The picture cannot be read from its source."


def _in_words(error: Exception) -> str:
    if isinstance(error, ClipError):
        return error.message
    return getattr(error, "strerror", None) or type(error).__name__
