"""The API with a heartbeat of its event streams that a test can wait for."""

from clip_queue.api import events
from clip_queue.api.app import app

events.HEARTBEAT = 0.5

__all__ = ["app"]
