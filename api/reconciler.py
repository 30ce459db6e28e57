"""The API's turns as reconciler (:mod:`clip_queue.shared.reconciler`): jobs are looked after where no worker is left."""

from __future__ import annotations

import asyncio
import logging

from clip_queue.api.critical_task import Owned
from clip_queue.api.publisher import Outbox
from clip_queue.api.registry import Registry
from clip_queue.shared.broker import queue_name
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.reconciler import PERIOD, Patience, Round, resend_level, take_turn
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore

log = logging.getLogger(__name__)


class Reconciler:
    def __init__(self, store: AsyncStore, registry: Registry, outbox: Outbox, settings: Settings) -> None:
        self._store = store
        self._registry = registry
        self._outbox = outbox
        self._settings = settings
        self._patience = Patience(settings)
        self._task = Owned("reconciler")

    def start(self) -> None:
        self._task.start(self._run())

    @property
    def alive(self) -> bool:
        return self._task.alive

    async def close(self) -> None:
        await self._task.close()

    async def _run(self) -> None:
        while True:
            try:
                if self._patience.over and await self._store.run(take_turn("api")):
                    await self._round()
            except Unavailable:
                self._patience.lost_sight()
            await asyncio.sleep(PERIOD)

    async def _round(self) -> None:
        turn = Round({**self._registry.configured, **self._registry.models}, self._settings)
        while (op := turn.op) is not None:
            turn.turn(await self._store.run(op))
        for model, lane, ids in turn.resend:
            log.log(resend_level(lane), "sending %d job(s) of %s again", len(ids), queue_name(model, lane))
            try:
                await self._outbox.publish((model, lane), ids)
            except Exception as error:  # whatever the broker's client raises; the next round sends them again
                log.warning("could not send again: %s", type(error).__name__)
