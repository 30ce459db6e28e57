"""The items of a request: images that are read or still to be fetched, and texts. A bad one is an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clip_queue.api.images import parse_image
from clip_queue.shared.errors import BadInput, ClipError, check_text_length
from clip_queue.shared.fetch import ImageUrl
from clip_queue.shared.job import Inputs, LongTexts

Item = bytes | str | ImageUrl  # an encoded image, a text, or the URL of an image


@dataclass(frozen=True)
class RequestItems:
    """The items of a request, in the order of its job; with ``skip``, the error of an item in its place.

    ``names`` are the names of a comparison's prompts, if any.
    """

    items: Sequence[Item | ClipError]
    names: list[str] | None = None
    skip: bool = False
    long_texts: LongTexts = LongTexts.FAIL


@dataclass(frozen=True)
class FetchedItems:
    """The items of a request after its URLs were fetched: the inputs of its job, and the errors of the other items."""

    inputs: Inputs
    refused: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, items: Sequence[bytes | str | ClipError], asked: RequestItems) -> FetchedItems:
        """``items`` are those of ``asked``, each URL replaced by its image."""
        good = [item for item in items if not isinstance(item, ClipError)]
        return cls(
            Inputs(good, asked.names, asked.long_texts is LongTexts.CUT),
            [item.to_wire() for item in items if isinstance(item, ClipError)],
        )

    def raise_if_none(self) -> None:
        """Raise the first error if no item is good."""
        if not self.inputs.items and self.refused:
            raise ClipError.from_wire(self.refused[0])


def parse_images(
    values: Sequence[object], max_bytes: int, field: str, *, skip: bool = False, indexed: bool = False
) -> list[Item | ClipError]:
    """The images of a request, in order.

    Raises:
        BadInput, BadImage: for the first value that is no image, unless ``skip``: then its error is in its place.
            ``index`` is set if there are several values, with ``skip`` and with ``indexed``.
    """
    several = len(values) > 1

    def parse(value: object, index: int) -> Item:
        return parse_image(value, max_bytes, f"{field}[{index}]" if several else field)

    return parse_each(values, parse, skip=skip, indexed=indexed)


def parse_texts(
    values: Sequence[object],
    max_chars: int,
    field: str,
    *,
    skip: bool = False,
    indexed: bool = False,
    long_texts: LongTexts = LongTexts.FAIL,
) -> list[Item | ClipError]:
    """The texts of a request, in order. Raises and skips as :func:`parse_images` does."""

    def parse(value: object, _: int) -> Item:
        return parse_text(value, max_chars, field, long_texts)

    return parse_each(values, parse, skip=skip, indexed=indexed)


def parse_text(value: object, max_chars: int, field: str, long_texts: LongTexts = LongTexts.FAIL) -> str:
    """One text of a request; of a longer one the first ``max_chars``, if it may be cut. Raises :class:`BadInput`."""
    if not isinstance(value, str):
        raise BadInput(f"Field '{field}' must hold text here; it holds {json_type(value)}.")
    if long_texts is LongTexts.CUT:
        value = value[:max_chars]
    check_text_length(value, max_chars)
    check_unicode(value, f"Field '{field}'")
    return value


def parse_each(
    values: Sequence[object], parse: Callable[[object, int], Item], *, skip: bool = False, indexed: bool = False
) -> list[Item | ClipError]:
    """What ``parse`` makes of each value and its place. Raises and skips as :func:`parse_images` does."""
    indexed = indexed or skip or len(values) > 1
    parsed: list[Item | ClipError] = []
    for index, value in enumerate(values):
        try:
            item = parse(value, index)
            parsed.append(replace(item, index=index) if indexed and isinstance(item, ImageUrl) else item)
        except ClipError as error:
            error.index = index if indexed else None
            if not skip:
                raise
            parsed.append(error)
    return parsed


def check_unicode(text: str, what: str) -> None:
    """Raise :class:`BadInput` for half of a pair of surrogates: JSON may hold one, no encoding of Unicode can."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{what} holds half of a character (a lone surrogate), as a cut emoji does.") from None


def json_type(value: object) -> str:
    """The JSON type of a value, for an error message."""
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "text"}
    return kinds.get(type(value), "something else")
