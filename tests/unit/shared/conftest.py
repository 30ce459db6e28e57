"""The store that most tests of its operations use."""

from __future__ import annotations

from collections.abc import Iterator

import fakeredis
import pytest

from clip_queue.shared.store import Store


@pytest.fixture
def store() -> Iterator[Store]:
    yield (it := Store(fakeredis.FakeRedis()))
    it.close()
