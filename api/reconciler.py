"""The API's part in reconciling (:mod:`clip_queue.shared.reconciler`): it goes on when no worker is left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from clip_queue.api.critical_task import CriticalTask
from clip_queue.api.registry import Registry
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.messages import publish, queue_name
from clip_queue.shared.reconciler import PERIOD, RUNS, GracePeriod, ReconcilePass, acquire_turn, resend_level
from clip_queue.shared.runs import led, reconcile_runs
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore
from clip_queue.shared.workers import bury

log = logging.getLogger(__name__)


class Reconciler:
    """Reconciles the unfinished jobs every ``period`` seconds, unless another process does it."""

    def __init__(
        self,
        store: AsyncStore,
        registry: Registry,
        settings: Settings,
        *,
        period: float = PERIOD,
    ) -> None:
        self._store = store
        self._registry = registry
        self._settings = settings
        self._period = period
        self._grace = GracePeriod(settings)
        self._task = CriticalTask("reconciler")

    def start(self) -> None:
        self._grace.restart()  # nobody has looked at Redis before
        self._task.start(self._run())

    @property
    def alive(self) -> bool:
        return self._task.alive

    async def close(self) -> None:
        await self._task.close()

    async def _run(self) -> None:
        while True:
            try:
                models = {**self._registry.configured, **self._registry.models}
                if self._grace.over and await self._store.execute(acquire_turn("api")):
                    await self._store.execute(bury())
                    await self._reconcile(models)
                if self._grace.over and await self._store.execute(acquire_turn("api", RUNS)):
                    settings = self._settings
                    await self._store.execute(reconcile_runs(settings.max_attempts, 2 * settings.lease))
                    await self._reconcile(map(led, models))
            except Unavailable:
                self._grace.restart()
            await asyncio.sleep(self._period)

    async def _reconcile(self, models: Iterable[str]) -> None:
        reconciling = ReconcilePass(models, self._settings)
        while (op := reconciling.op) is not None:
            reconciling.advance(await self._store.execute(op))
        for model, lane, ids in reconciling.resend:
            log.log(resend_level(lane), "sending %d job(s) of %s again", len(ids), queue_name(model, lane))
            await self._store.execute(publish(model, lane, ids))
