"""The model itself, beside the served one, and a stack whose worker can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.models import CATALOGUE
from shared.settings import Settings
from tests.harness import stack
from tests.reference import Reference
from tests.team import Team
from worker.clip import Clip


@pytest.fixture(scope="session")
def clip() -> Clip:
    """The session worker's model at its precision, in this process."""
    return Clip(CATALOGUE["emoji-mini"], Settings(device="cpu", precision="fp32"))


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The same model, as open_clip alone has it."""
    return Reference()


@pytest.fixture(scope="session")
def solo_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with stack(tmp_path_factory.mktemp("solo"), forward_timeout=10, interactive_jobs=True) as it:
        yield Team.start(it, 1)


@pytest.fixture
def solo(solo_stack: Team) -> Team:
    """One worker, healthy until told otherwise, and an API without keys where jobs may be interactive."""
    solo_stack.heal()
    return solo_stack
