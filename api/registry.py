"""Which models are served now, as the workers say."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from clip_queue.api.critical_task import Owned
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.models import check_known, parse_models
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore
from clip_queue.shared.workers import ModelInfo, WorkerInfo, workers

log = logging.getLogger(__name__)

PERIOD = 1.0  # seconds between looks


class Registry:
    """A picture of the live workers, renewed every second by one task."""

    def __init__(self, store: AsyncStore, settings: Settings) -> None:
        self._store = store
        self._task = Owned("registry")
        self.configured = parse_models(settings.models)
        self.default = next(iter(self.configured))
        self.workers: list[WorkerInfo] = []
        self._seen = 0.0

    def start(self) -> None:
        self._task.start(self._look())

    @property
    def alive(self) -> bool:
        return self._task.alive

    async def close(self) -> None:
        await self._task.close()

    async def refresh(self) -> None:
        """Look now. Raises :class:`Unavailable`."""
        self.workers = await self._store.run(workers())
        self._seen = time.monotonic()

    @property
    def models(self) -> dict[str, ModelInfo]:
        """What is served, by name."""
        return {model.name: model for worker in self.workers for model in worker.models}

    def check(self, model: str, *, later: bool = False) -> None:
        """Raises :class:`UnknownModel`, or :class:`Unavailable` where no live worker serves it.

        ``later``: a configured model is enough: its workers will be back before the caller is.
        """
        served = self.models
        if model in served or (later and model in self.configured):
            return
        check_known(model, self.configured)
        now = ", ".join(sorted(served)) or "none"
        raise Unavailable(f"No live worker serves model {model!r} (served now: {now}).", retry_after=5)

    def retry_after(self, model: str, items: int) -> float:
        """Seconds after which ``items`` more will fit, by the rate that the workers measured; 1 to 60."""
        rate = sum(w.rate for w in self.workers if any(m.name == model for m in w.models))
        return float(min(60, max(1, math.ceil(items / rate)))) if rate else 5.0

    async def _look(self) -> None:
        while True:
            try:
                await self.refresh()
            except Unavailable as error:
                # Redis away for a moment is not workers dead: the last picture stands for a while.
                if time.monotonic() - self._seen > 15:
                    self.workers = []
                log.debug("workers cannot be seen: %s", error.message)
            await asyncio.sleep(PERIOD)
