"""The API with a heartbeat of its event streams that a test can wait for."""

from api import events
from api.app import app

events.HEARTBEAT = 0.5

__all__ = ["app"]
