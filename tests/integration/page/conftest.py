"""A browser for a module's tests, and contexts of it that are looked at when a test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.browser import Watched, browser
from tests.harness import Api, Stack


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as it:
        yield it


@pytest.fixture
def visit(chrome: Browser) -> Iterator[Callable[..., Watched]]:
    """Makes contexts of the browser, each of which is looked at when the test ends."""
    made: list[Watched] = []

    def visit(url: str, **options: Any) -> Watched:
        made.append(Watched(chrome, url, **options))
        return made[-1]

    yield visit
    for each in made:
        each.close()
    for each in made:
        each.check()


@pytest.fixture
def here(served: tuple[Stack, Api], visit: Callable[..., Watched]) -> Watched:
    """A context for the stack of all tests that only ask."""
    return visit(served[1].url)
