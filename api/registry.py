"""Which models are served now, by what the live workers write to the store."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from clip_queue.api.critical_task import CriticalTask
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.models import ModelInfo, check_known, parse_models
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore
from clip_queue.shared.workers import WorkerInfo, workers

log = logging.getLogger(__name__)

POLL_INTERVAL = 1.0  # seconds between two reads
KEEP = 15.0  # seconds that the last list of workers is used while the store cannot be reached


class Registry:
    """The live workers, read again every ``poll_interval`` seconds by one task."""

    def __init__(
        self, store: AsyncStore, settings: Settings, *, poll_interval: float = POLL_INTERVAL, keep: float = KEEP
    ) -> None:
        self._store = store
        self._poll_interval = poll_interval
        self._keep = keep
        self._task = CriticalTask("registry")
        self.configured = parse_models(settings.models)
        self.default = next(iter(self.configured))
        self.workers: list[WorkerInfo] = []
        self._read_at = -math.inf

    def start(self) -> None:
        self._task.start(self._poll())

    @property
    def alive(self) -> bool:
        return self._task.alive

    async def close(self) -> None:
        await self._task.close()

    async def refresh(self) -> None:
        """Read the workers now. Raises :class:`Unavailable`."""
        self.workers = await self._store.execute(workers())
        self._read_at = time.monotonic()

    @property
    def models(self) -> dict[str, ModelInfo]:
        """The models that live workers serve, by name."""
        return {model.name: model for worker in self.workers for model in worker.models}

    def resolve(self, asked: str | None, *, later: bool = False) -> str:
        """The name of the model that a request asks for; None: the default.

        Args:
            later: accept a configured model without a live worker. The caller polls, so the worker may come later.

        Raises:
            UnknownModel: there is no such model.
            Unavailable: no live worker serves it.
        """
        model, served = asked or self.default, self.models
        if model in served or (later and model in self.configured):
            return model
        check_known(model, self.configured)
        now = ", ".join(sorted(served)) or "none"
        raise Unavailable(f"No live worker serves model {model!r} (served now: {now}).", retry_after=5)

    def retry_after(self, model: str, items: int) -> float:
        """Seconds after which the queue has room for ``items`` more, from the workers' measured rates; 1 to 60."""
        rate = sum(w.rate for w in self.workers if any(m.name == model for m in w.models))
        return float(min(60, max(1, math.ceil(items / rate)))) if rate else 5.0

    async def _poll(self) -> None:
        while True:
            try:
                await self.refresh()
            except Unavailable as error:
                # The store cannot be reached, but the workers may live: the last list is used for a while.
                if time.monotonic() - self._read_at > self._keep:
                    self.workers = []
                log.debug("workers cannot be read: %s", error.message)
            await asyncio.sleep(self._poll_interval)
