"""A look at a source or an output may take hours; who has it done can end it in between.

What lists, counts or scans calls :func:`go_on` again and again, in the thread that began to look. Whoever begins gives
a function that raises if there is to be an end of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_check: ContextVar[Callable[[], None] | None] = ContextVar("check", default=None)


@contextmanager
def heeding(check: Callable[[], None]) -> Iterator[None]:
    """``check`` is called again and again by what looks in this block. What it raises ends the look."""
    before = _check.set(check)
    try:
        yield
    finally:
        _check.reset(before)


def go_on() -> None:
    """Called between two steps of a look. Raises what the check of the block around it raises."""
    if check := _check.get():
        check()
