"""The API with a short interval between the heartbeats of its event streams, so that a test can wait for one."""

from clip_queue.api import events
from clip_queue.api.app import app

events.HEARTBEAT = 0.5

__all__ = ["app"]
