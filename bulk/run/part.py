"""Parts of a run: each is done by a command of its own with workers of its own, and all go into one output.

A part is a choice of the plan's shards, K, K + N, K + 2 N, …, and stands nowhere but in the command. So a run that was
begun in sixteen parts may go on in eight, or in one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clip_queue.bulk.output import manifest
from clip_queue.bulk.output.errors import OutputError
from clip_queue.bulk.output.layout import Output
from clip_queue.bulk.output.manifest import Manifest
from clip_queue.bulk.output.output_lease import STALE, OutputLease
from clip_queue.bulk.run.workers import NotStarted
from clip_queue.shared.errors import BadInput

POLL_INTERVAL = 0.5  # seconds between looks at what another command has


@dataclass(frozen=True)
class Part:
    """Part ``number``, from 1, of ``of`` parts; the only one of one is the whole."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, given: str | tuple[int, int]) -> Part:
        """A part as it is given, ``"3/16"`` or ``(3, 16)``. Raises :class:`BadInput`."""
        text = given if isinstance(given, str) else "/".join(map(str, given))
        found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
        if not found:
            raise BadInput(f"part {text!r} is not understood: use K/N for the Kth of N parts, as 3/16")
        number, of = int(found[1]), int(found[2])
        if not 1 <= number <= of:
            right = f"1/{of} to {of}/{of}" if of else "1/16 to 16/16, where there are 16"
            raise BadInput(f"there is no part {number}/{of}: parts are counted from 1, {right}")
        return cls(number, of)

    def shards(self, total: int) -> range:
        """The numbers of its shards, where the plan has so many."""
        return range(self.number - 1, total, self.of)

    def missing(self, shards: Iterable[int]) -> list[str]:
        """The parts, of as many as this one is one of, that have these shards to do."""
        return [f"{number}/{self.of}" for number in sorted({shard % self.of + 1 for shard in shards})]

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Part()


@contextmanager
def at_work(
    output: Output, part: Part, say: Callable[[str], None], should_stop: Callable[[], bool]
) -> Iterator[Callable[[], None]]:
    """Do a part as the only command that does. Yields a check that this is still so.

    Raises:
        OutputError: another command is at work at it; also from the check.
        NotStarted: the run was told to stop.
    """
    with OutputLease(output, f"part-{part.number}-of-{part.of}") as lease:

        def check() -> None:
            if lease.is_lost:
                raise OutputError(f"this command was silent for {STALE:g} s, and another one does part {part} now")

        for _ in waiting(lease, f"part {part} is another command's", say, should_stop):
            if lease.is_alive:
                raise OutputError(
                    f"another command, on {lease.holder}, is at work at part {part} of {output.url}: wait for it, or "
                    "stop it"
                )
        yield check


@contextmanager
def turn_to_plan(
    output: Output, say: Callable[[str], None], should_stop: Callable[[], bool]
) -> Iterator[Manifest | None]:
    """The manifest that another command has written, or None: then it is this one's turn to plan, for as long as the
    block lasts. The others wait meanwhile.

    Raises:
        NotStarted: the run was told to stop.
    """
    with OutputLease(output, "plan") as lease:
        for _ in waiting(lease, "another command is planning", say, should_stop):
            if found := manifest.load(output):
                yield found
                return
        yield manifest.load(output)  # it may have been written a moment ago


def waiting(
    lease: OutputLease, why: str, say: Callable[[str], None], should_stop: Callable[[], bool]
) -> Iterator[None]:
    """Comes round while somebody else has a lease, and ends once it is this command's."""
    said = False
    try:
        while not lease.take():
            if not said:
                say(f"{why}, on {lease.holder}: waiting for it, or until it was silent for {STALE:g} s")
                said = True
            yield
            if should_stop():
                raise NotStarted("stopped while it was waiting for another command")
            time.sleep(POLL_INTERVAL)
    except OSError as error:
        raise OutputError.because(error) from error
