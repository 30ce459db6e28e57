"""The service that most tests of the API use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from .service import Service, serve


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """A service with default settings and one live worker."""
    async with serve() as it:
        yield it
