"""What is asked and what is answered, without a connection: a piece of work is a generator of its steps.

It yields a :class:`Request` and is sent the :class:`Answer`, or an exception in its place; or it yields a
:class:`Pause` and goes on after it. Who runs it decides how: with a blocking client or in an event loop.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeAlias, TypeVar

import orjson

from clip_queue.client.errors import NOT_OURS, BadRequest, ClipQueueError, Unavailable

log = logging.getLogger("clip_queue.client")
T = TypeVar("T")

TRIED_AGAIN = (429, 502, 503, 504)  # no status tells more surely that the same request may succeed later
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds; the server may ask for longer ones


@dataclass(frozen=True)
class Request:
    """``patience``: seconds that the server may take longer than usual, because it was asked to wait."""

    method: str
    path: str
    body: bytes | None = field(default=None, repr=False)
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    patience: float = 0.0


@dataclass(frozen=True)
class Answer:
    """``headers``: their names in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises :class:`ClipQueueError`."""
        try:
            found = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise self.unexpected
        return found

    @property
    def unexpected(self) -> ClipQueueError:
        """The error of an answer that is not as documented."""
        return ClipQueueError(NOT_OURS, **self._about())

    def _about(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "request_id": self.headers.get("x-request-id"),
            "retry_after": self.retry_after or None,
        }

    @property
    def retry_after(self) -> float:
        """Seconds after which the server asks to try again; 0 if it does not."""
        said = self.headers.get("retry-after", "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d*)?", said):
            return float(said)
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
        except (ValueError, OverflowError, IndexError):
            return 0.0

    @property
    def error(self) -> ClipQueueError:
        """What this answer, of another status than 2xx, is for the caller."""
        try:
            said = self.json()
        except ClipQueueError:  # of a proxy
            said = {}
        index, code = said.get("index"), said.get("code")
        kind = Unavailable if self.status in TRIED_AGAIN else BadRequest if 400 <= self.status < 500 else ClipQueueError
        return kind(
            _message(said) or f"The server answered with the status {self.status}.",
            code=code if isinstance(code, str) else None,
            index=index if type(index) is int and index >= 0 else None,
            **self._about(),
        )


def _message(said: dict[str, Any]) -> str:
    if isinstance(said.get("message"), str):
        return str(said["message"])
    detail = said.get("detail")
    if not isinstance(detail, list):
        return detail if isinstance(detail, str) else ""
    problems = [problem for problem in detail if isinstance(problem, dict) and isinstance(problem.get("msg"), str)]
    return "; ".join(f"{_place(problem.get('loc'))}: {problem['msg']}" for problem in problems)


def _place(loc: object) -> str:
    return ".".join(map(str, loc)) if isinstance(loc, list) else ""


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Done(Generic[T]):
    value: T


Steps: TypeAlias = Generator[Request | Pause, Answer | None, T]


def advance(steps: Steps[T], outcome: Answer | ClipQueueError | None) -> Request | Pause | Done[T]:
    """The next step after what the last one led to: an answer, the error of none, or nothing after a pause."""
    try:
        return steps.throw(outcome) if isinstance(outcome, ClipQueueError) else steps.send(outcome)
    except StopIteration as end:
        return Done(end.value)


class Retries:
    """When something is tried again, and for how long.

    Args:
        total: seconds after the first failure in which it is tried again.
    """

    def __init__(
        self, total: float, *, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._total = total
        self._clock = clock
        self._chance = chance
        self.reset()

    def reset(self) -> None:
        """It went well: what fails next is a first failure."""
        self._until: float | None = None
        self._tries = 0

    def pause(self, asked: float = 0.0) -> Pause | None:
        """The pause before the next try; None if it would end too late.

        ``asked``: what the server asks for, seconds. It is not undercut; up to a quarter more keeps clients apart.
        """
        now = self._clock()
        if self._until is None:
            self._until = now + self._total
        usual = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._tries, 10)) * (0.5 + self._chance() / 2)
        seconds = max(usual, asked * (1 + self._chance() / 4))
        self._tries += 1
        return Pause(seconds) if now + seconds <= self._until else None


def ask(request: Request) -> Steps[Answer]:
    """The answer to a request. Its status may be an error's."""
    answer = yield request
    assert answer is not None
    return answer


def ask_for(request: Request) -> Steps[Answer]:
    """The same, where every other status than 2xx raises a :class:`ClipQueueError`."""
    answer = yield from ask(request)
    if not 200 <= answer.status < 300:
        raise answer.error
    return answer


def persistent(steps: Steps[T], retry_for: float) -> Steps[T]:
    """The same work, where a request that may succeed later is sent again, as long as that.

    Everything that a client sends may be sent twice: a submission has its idempotency key, and the rest computes, reads
    or cancels. Raises :class:`Unavailable`.
    """
    outcome: Answer | None = None
    while True:
        step = advance(steps, outcome)
        if isinstance(step, Done):
            return step.value
        outcome = (yield from _again(step, retry_for)) if isinstance(step, Request) else (yield step)


def _again(request: Request, retry_for: float) -> Steps[Answer]:
    retries, told = Retries(retry_for), False
    while True:
        try:
            answer = yield from ask(request)
            if answer.status not in TRIED_AGAIN:
                return answer
            asked, failure = answer.retry_after, answer.error
        except Unavailable as error:
            asked, failure = 0.0, error
        pause = retries.pause(asked)
        if pause is None:
            raise failure
        level = logging.INFO if told or failure.status == 429 else logging.WARNING  # a full queue is no trouble
        log.log(level, "%s Trying again in %.1f s.", failure.message, pause.seconds)
        told = True
        yield pause
