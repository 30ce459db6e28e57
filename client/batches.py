"""Any number of items, cut into requests that the server takes, and its answers put together again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from clip_queue.client import images
from clip_queue.client.errors import BadRequest, ClipQueueError
from clip_queue.client.results import Embeddings, ItemError, cosines, item_errors, matrix
from clip_queue.client.steps import Answer, Request, Steps, ask

OnError: TypeAlias = Literal["fail", "skip"]
LongTexts: TypeAlias = Literal["fail", "cut"]
Kind: TypeAlias = Literal["image", "text"]

_TOO_MANY = re.compile(r"holds \d+ items; at most (\d+) fit in a request")
_TOO_LARGE = re.compile(r"larger than (\d+) bytes")
_GOOD = {"image": images.to_json(images.png(np.full((32, 32, 3), 128, np.uint8)), 0), "text": b'"a"'}


@dataclass
class ClientLimits:
    """How much one request may hold. These are the server's defaults; a server that takes less says so, and from then
    on is sent less.

    Attributes:
        images: of an embedding request.
        texts: of an embedding request.
        prompts: of a comparison.
        body_bytes: of a request as it is sent, JSON and base64 included.
    """

    images: int = 8
    texts: int = 256
    prompts: int = 8
    body_bytes: int = 64 * 2**20
    learned_bytes: int = field(init=False, repr=False)  # of a request of several items

    def __post_init__(self) -> None:
        if min(self.images, self.texts, self.prompts) < 1 or self.body_bytes < 1024:
            raise ValueError("At least one item and 1,024 bytes fit in a request.")
        self.learned_bytes = self.body_bytes


@dataclass(frozen=True)
class Part:
    """Items of one request: their places in what was given, and their JSON."""

    indices: list[int]
    items: list[bytes] = field(repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    def cut(self, most: int) -> Iterator[Part]:
        for i in range(0, len(self), most):
            yield Part(self.indices[i : i + most], self.items[i : i + most])


@dataclass(frozen=True)
class Route:
    """Where items are sent, and under which names.

    Attributes:
        items: the field of the items in a request.
        values: the field of their values in its answer.
        limit: what bounds their number, a name in :class:`ClientLimits`.
    """

    path: str
    items: str
    values: str
    limit: str


ROUTES: dict[Kind, Route] = {
    "image": Route("/clip/embed_image", "image", "embeddings", "images"),
    "text": Route("/clip/embed_text", "text", "embeddings", "texts"),
}
COMPARE = Route("/clip/compare", "prompt", "similarity", "prompts")


@dataclass(frozen=True)
class Answered:
    """What the server said to a part: a value for each item, a vector (n, dimension) or a cosine (n,), or errors."""

    indices: list[int]
    values: NDArray[np.float32] | None = field(repr=False)  # NaN: the item failed; None: all of them did
    errors: list[ItemError] = field(default_factory=list)
    model: str = ""
    fingerprint: str = ""


class Batches:
    """One call of ``embed_images``, ``embed_texts`` or ``compare``.

    ``groups`` and ``parts`` say what to send, ``ask`` sends a part, ``add`` takes what it returned.

    Args:
        kind: what the items are.
        limits: shared by all calls of a client.
        rest: the other fields of each request, as JSON.
        on_error: what to do about an item that fails.
    """

    def __init__(
        self,
        route: Route,
        kind: Kind,
        limits: ClientLimits,
        rest: Mapping[str, bytes],
        on_error: OnError = "fail",
    ) -> None:
        if on_error not in ("fail", "skip"):
            raise ValueError(f"on_error is 'fail' or 'skip', not {on_error!r}.")
        self._route = route
        self._kind: Kind = kind
        self._limits = limits
        self._skip = on_error == "skip"
        self._rest = dict(rest) | ({"on_error": b'"skip"'} if self._skip else {})
        self._fixed_bytes = 64 + sum(len(key) + len(value) + 4 for key, value in self._rest.items())
        self._count = 0
        self._answered: list[Answered] = []

    @property
    def most(self) -> int:
        """The most items of a request."""
        return int(getattr(self._limits, self._route.limit))

    def groups(self, items: Iterable[object]) -> Iterator[list[tuple[int, object]]]:
        """The items with their places, as many at a time as fit in a request. A generator is read as it is needed."""
        numbered = iter(enumerate(items))
        while group := list(islice(numbered, self.most)):
            self._count += len(group)
            yield group

    def parts(self, group: list[tuple[int, object]]) -> list[Part]:
        """What to send for a group: images are read and encoded here.

        Raises :class:`BadRequest` for an item that cannot be sent, unless such are skipped.
        """
        most = self._limits.body_bytes * 3 // 4
        room = self._limits.learned_bytes - self._fixed_bytes
        parts: list[Part] = []
        used = room
        for index, value in group:
            try:
                item = to_json(self._kind, value, most)
            except BadRequest as error:
                error.index = index
                if not self._skip:
                    raise
                self.add([Answered([index], None, [_failure(index, error)])])
                continue
            if used + len(item) + 1 > room:
                parts.append(Part([], []))
                used = 0
            parts[-1].indices.append(index)
            parts[-1].items.append(item)
            used += len(item) + 1
        return parts

    def ask(self, part: Part, company: bool = False) -> Steps[list[Answered]]:
        """Send a part, in smaller ones if the server takes no such one.

        ``company``: with an item that is known to be good, because the server tells what is wrong with each item only
        where one is good.
        """
        body = self._body(part, company)
        answer = yield from ask(Request("POST", self._route.path, body))
        if answer.status == 200:
            return [self._read(answer, part, company)]
        if most := self._fewer(answer, len(part), len(body), company):
            return (yield from self._ask_all(part.cut(most), company))
        error = answer.error
        of_items = answer.status in (400, 413)
        if self._skip and of_items:
            if len(part) == 1 and (company or self.most == 1 or answer.status == 413):
                return [Answered(part.indices, None, [_failure(part.indices[0], error)])]
            if not company:
                return (yield from self._ask_all(part.cut(max(1, self.most - 1)), True))
        if error.index is not None and error.index < len(part):
            error.index = part.indices[error.index]
        elif of_items and len(part) == 1 and self._route is not COMPARE:  # there it may be the subject
            error.index = part.indices[0]
        raise error

    def _ask_all(self, parts: Iterable[Part], company: bool) -> Steps[list[Answered]]:
        answered: list[Answered] = []
        for part in parts:
            answered += yield from self.ask(part, company)
        return answered

    def _fewer(self, answer: Answer, count: int, size: int, company: bool) -> int:
        """How many of ``count`` items, ``size`` bytes, to send at once if there were too many; 0: that is not it."""
        if answer.status == 413:
            if count > 1:
                said = _TOO_LARGE.search(answer.error.message)
                self._limits.learned_bytes = min(self._limits.learned_bytes, int(said[1]) if said else size // 2)
            return count // 2
        if answer.status == 400 and (said := _TOO_MANY.search(answer.error.message)):
            most = max(1, int(said[1]))
            setattr(self._limits, self._route.limit, min(most, self.most))
            most = max(1, most - company)
            return most if most < count else 0
        return 0

    def _body(self, part: Part, company: bool) -> bytes:
        items = [*part.items, _GOOD[self._kind]] if company else part.items
        return to_body({self._route.items: b"[" + b",".join(items) + b"]", **self._rest})

    def _read(self, answer: Answer, part: Part, company: bool) -> Answered:
        said = answer.json()
        found = said.get(self._route.values)
        if not isinstance(found, list) or len(found) != len(part) + company:
            raise answer.unexpected
        values = cosines(found) if self._route is COMPARE else matrix(found)
        errors = [error for error in item_errors(said.get("errors"), len(found)) if error.index < len(part)]
        return Answered(
            part.indices,
            values[: len(part)],
            [ItemError(part.indices[error.index], error.code, error.message) for error in errors],
            answer.headers.get("x-clip-queue-model", ""),
            answer.headers.get("x-clip-queue-fingerprint", ""),
        )

    def add(self, answered: Iterable[Answered]) -> None:
        """Take what :meth:`ask` returned."""
        self._answered += answered

    @property
    def done(self) -> int:
        """How many items have a value or an error."""
        return sum(len(one.indices) for one in self._answered)

    def embeddings(self) -> Embeddings:
        """The result of an embedding call, once every part has been added."""
        models = sorted({one.model for one in self._answered if one.model})
        if len(models) > 1:
            raise ClipQueueError(
                f"The server's default model changed in the middle ({' and '.join(models)}): name one (model=…)."
            )
        return Embeddings(
            self._in_order((self._count, 0)),
            sorted((error for one in self._answered for error in one.errors), key=lambda error: error.index),
            models[0] if models else "",
            tuple(sorted({one.fingerprint for one in self._answered if one.fingerprint})),
        )

    def cosines(self) -> NDArray[np.float32]:
        """The result of a comparison, once every part has been added: (prompts,), float32."""
        return self._in_order((self._count,))

    def _in_order(self, if_none: tuple[int, ...]) -> NDArray[np.float32]:
        """The values in the order of their items; an array of the shape ``if_none`` if no item has one."""
        shapes = {one.values.shape[1:] for one in self._answered if one.values is not None}
        if len(shapes) > 1:
            raise ClipQueueError("The answers' vectors are not of one length.")
        out = np.full((self._count, *shapes.pop()) if shapes else if_none, np.nan, np.float32)
        for one in self._answered:
            if one.values is not None:
                out[one.indices] = one.values
        return out


def to_json(kind: Kind, value: object, max_bytes: int) -> bytes:
    """An item of a request. Raises :class:`BadRequest`."""
    if kind == "image":
        return images.to_json(value, max_bytes)
    if not isinstance(value, str):
        raise BadRequest(f"{type(value).__name__} is no text.", code="bad_input")
    return dumps(str(value))


def dumps(value: object) -> bytes:
    """JSON. Half of a character (a cut emoji), which no UTF-8 can hold, is escaped: the server says what is wrong."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value).encode()


def to_body(fields: Mapping[str, bytes]) -> bytes:
    """A JSON object of fields that are JSON already."""
    return b"{" + b",".join(orjson.dumps(name) + b":" + value for name, value in fields.items()) + b"}"


def _failure(index: int, error: ClipQueueError) -> ItemError:
    return ItemError(index, error.code or ("too_large" if error.status == 413 else "bad_input"), error.message)


def embedding(
    kind: Kind, model: str | None, on_error: OnError, limits: ClientLimits, long_texts: LongTexts = "fail"
) -> Batches:
    """A call of ``embed_images`` or ``embed_texts``."""
    if long_texts not in ("fail", "cut"):
        raise ValueError(f"Long texts 'fail' or are 'cut', not {long_texts!r}.")
    cut = {"long_texts": dumps("cut")} if long_texts == "cut" else {}
    return Batches(ROUTES[kind], kind, limits, {**_model(model), **cut}, on_error)


def comparison(
    subject: object, subject_type: Kind, prompt_type: Kind, model: str | None, limits: ClientLimits
) -> Batches:
    """A call of ``compare``. Raises :class:`BadRequest` for a subject that cannot be sent."""
    for kind in (subject_type, prompt_type):
        if kind not in ("image", "text"):
            raise ValueError(f"A type is 'image' or 'text', not {kind!r}.")
    rest = {
        "subject": to_json(subject_type, subject, limits.body_bytes * 3 // 4),
        "subject_type": dumps(subject_type),
        "prompt_type": dumps(prompt_type),
        **_model(model),
    }
    return Batches(COMPARE, prompt_type, limits, rest)


def _model(model: str | None) -> dict[str, bytes]:
    return {} if model is None else {"clip_version_id": dumps(model)}


def named(prompts: Any, kind: Kind) -> tuple[list[str] | None, Iterable[object]]:
    """The names of prompts, if they have names, and the prompts."""
    if isinstance(prompts, Mapping) and (kind == "text" or not {"type", "value"} <= prompts.keys()):
        return list(prompts), list(prompts.values())
    return None, several(prompts, kind)


def several(items: Any, kind: Kind) -> Iterable[object]:
    """One image or text as a list of one; else what was given."""
    one = isinstance(items, str | bytes) if kind == "text" else images.is_one(items)
    found: Iterable[object] = [items] if one else items
    return found
