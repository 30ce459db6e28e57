"""What is asked of a run: a source, and the options that were given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from clip_queue.bulk.output.manifest import PlanOptions
from clip_queue.bulk.run.options import EmbedOptions, options
from clip_queue.bulk.run.reading import Given, one_url, reading
from clip_queue.shared.errors import BadInput
from clip_queue.sources import registry, storage
from clip_queue.sources.detect import detect
from clip_queue.sources.source import Source, SourceError


@dataclass(frozen=True)
class EmbedRequest:
    """A source as far as the caller knows it, and the options that the caller gave."""

    source: Source
    given: EmbedOptions

    @classmethod
    def of(cls, url: Given, given: EmbedOptions) -> EmbedRequest:
        """Check what was given, and find the source's format where it was not.

        Raises:
            SourceError: the format is not known, or cannot be told.
            BadInput: an option is not one of its choices, or out of its bounds.
        """
        for name, value in given.items():
            _check(name, value)
        for kind in ("image", "text"):
            if given.get(f"{kind}s") is False and given.get(f"{kind}_column") is not None:
                raise BadInput(f"a column of {kind}s is named, and {kind}s are not wanted: leave one of the two out")
        if given.get("images") is False and given.get("texts") is False:
            raise BadInput("neither images nor texts are wanted: there is nothing to embed")
        if given.get("texts") is False and given.get("long_texts") == "cut":
            raise BadInput("long texts are to be cut, and texts are not wanted: leave one of the two out")
        if given.get("seed") is not None and given.get("sample") is None:
            raise BadInput("seed is of a sample, and none is asked for")
        format = given.get("format")
        if format is not None and format not in registry.FORMATS:
            raise SourceError(f"format {format!r} is not known: use one of {', '.join(registry.FORMATS)}")
        url = one_url(url)
        format = format or detect(url)
        source = Source(
            storage.absolute(url),
            format,
            given.get("image_column"),
            given.get("text_column"),
            given.get("images"),
            given.get("texts"),
            storage=reading(format, given),
        )
        return cls(source, given)

    def going_on(self, begun: Source) -> EmbedRequest:
        """With the format that an output was begun with, where none was given: what has come into a folder since may
        suggest another."""
        if self.given.get("format") is not None or self.source.url != begun.url:
            return self
        read = reading(begun.format, self.given)
        return replace(self, source=replace(self.source, format=begun.format, storage=read))

    def check_used(self, completed: Source) -> None:
        """Raise :class:`SourceError` for what was asked for and is of no use to the source, now that it is known."""
        if self.given.get("long_texts") == "cut" and not completed.texts:
            raise SourceError("long texts are to be cut, and there are no texts to embed: leave long_texts out")

    @property
    def shard_size(self) -> int | None:
        return self.given.get("shard_size")

    def plan_options(self, default: PlanOptions) -> PlanOptions:
        """``default`` with what was given."""
        given: dict[str, Any] = dict(self.given)
        names = PlanOptions.__dataclass_fields__
        return replace(default, **{name: given[name] for name in names if given.get(name) is not None})


def _check(name: str, value: Any) -> None:
    known = options()
    if name not in known:
        raise TypeError(f"embed() has no option {name!r}")
    if name == "sample" and value is not None and not (value and _is_within(value, Real, 0, 1)):
        raise BadInput(f"sample is {value}: use a share of the rows above 0 and up to 1, such as 0.01")
    option = known[name][1]
    if value is None:
        return
    if option.choices and value not in option.choices:
        raise BadInput(f"{name} {value!r} is not known: use {' or '.join(option.choices)}")
    least, most = option.least, option.most
    if least is not None and most is not None and not _is_within(value, Integral, least, most):
        raise BadInput(f"{name} is {value}: use {least} to {most}")


def _is_within(value: Any, kind: Any, least: int, most: int) -> bool:
    return isinstance(value, kind) and bool(least <= value <= most)
