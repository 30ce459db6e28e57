"""What Celery's own tools (``celery inspect``, Flower) see of a worker: all of it or nothing, and only to look at.

Jobs, their cancellation and the number of threads are this project's own. A command that would change a worker behind
its back (stop reading a queue, limit a rate, forget messages) is refused, whoever sends it.
"""

from __future__ import annotations

from typing import Any

from celery.events.dispatcher import EventDispatcher as CeleryDispatcher
from celery.worker import control
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu import Connection

LOOKING = frozenset(
    {"active", "active_queues", "clock", "conf", "enable_events", "heartbeat", "ping", "query_task", "registered"}
    | {"report", "reserved", "revoked", "scheduled", "stats"}
)
REFUSED = "clip-queue's workers are only looked at: cancel by DELETE /jobs/ID, stop a worker by SIGTERM"


def refuse(_state: Any, **_: Any) -> dict[str, str]:
    """In the place of commands that change something."""
    return {"error": REFUSED}


def stats(state: Any, **_: Any) -> dict[str, Any]:
    """Celery's own, but for the broker: that names the passwords in the URLs of Sentinels and sockets."""
    found: dict[str, Any] = control.stats(state)
    return {**found, "broker": {"transport": found["broker"].get("transport")}}


def commands(known: dict[str, Any]) -> dict[str, Any]:
    """Celery's commands with those in their place that a worker of ours obeys otherwise."""
    kept = {name: command if command.__name__ in LOOKING else refuse for name, command in known.items()}
    return {**kept, "stats": stats}


class EventDispatcher(CeleryDispatcher):
    """Celery's own forgets what another thread adds while it sends."""

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        if errors:
            super().flush(errors=True, groups=False)
        with self.mutex:
            for group, events in self._group_buffer.items() if groups else ():
                if sent := events[:]:
                    self._publish(sent, self.producer, f"{group}.multi")
                    del events[: len(sent)]


class Consumer(CeleryConsumer):
    """Celery's consumer of messages, with what the setting ``celery_tools`` says, whatever the command line says.

    Workers know of each other by their leases, so Celery's own ways to that (gossip, mingle) are off.
    """

    def __init__(self, *args: Any, app: Any, **options: Any) -> None:
        control.Panel.data = commands(control.Panel.data)
        app.events.dispatcher_cls = EventDispatcher
        seen = app.conf.worker_send_task_events
        apart = {"without_gossip": True, "without_mingle": True, "without_heartbeat": not seen}
        super().__init__(*args, app=app, **{**options, **apart})

    def on_send_event_buffered(self) -> None:
        """Celery's own adds to the event loop's set while that may be read: events come from the pool's threads."""
        if self.hub:
            self.hub.call_soon(self._flush_events)

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Connection:
        """Of events. They end after the time that publishers have, so that a silent server holds up no job."""
        limit = {"socket_timeout": self.app.conf.broker_transport_options["socket_connect_timeout"]}
        options = {"url": url, "heartbeat": heartbeat, "transport_options": limit}
        connected: Connection = self.ensure_connected(self.app.connection_for_write(**options))
        return connected
