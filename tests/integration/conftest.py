"""The model itself, beside the served one: what every answer must equal."""

from __future__ import annotations

import pytest

from shared.models import CATALOGUE
from shared.settings import Settings
from tests.reference import Reference
from worker.clip import Clip


@pytest.fixture(scope="session")
def clip() -> Clip:
    """The session worker's model at its precision, in this process."""
    return Clip(CATALOGUE["emoji-mini"], Settings(device="cpu", precision="fp32"))


@pytest.fixture(scope="session")
def reference() -> Reference:
    """The same model, as open_clip alone has it."""
    return Reference()
