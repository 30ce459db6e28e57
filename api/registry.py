"""Which models are served now, by what the live workers write to the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time

from clip_queue.api.critical_task import CriticalTask
from clip_queue.shared.errors import Unavailable, UnknownModel
from clip_queue.shared.loading import workers_and_loading
from clip_queue.shared.models import ALIASES, PREFIX, ModelInfo, check_known, parse_aliases, parse_models
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import AsyncStore
from clip_queue.shared.workers import WorkerInfo

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
        self._restart_grace = settings.restart_grace
        self._task = CriticalTask("registry")
        self.configured = parse_models(settings.models)
        self.default = next(iter(self.configured))
        self._aliases = parse_aliases(settings.model_aliases)
        self.workers: list[WorkerInfo] = []
        self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None
        self._unbroken = math.inf  # since when every read has succeeded
        self._seen: dict[str, float] = {}  # when a worker that serves a model, or loads it, was seen last

    def start(self) -> None:
        self._task.start(self._poll())

    @property
    def alive(self) -> bool:
        return self._task.alive

    async def close(self) -> None:
        await self._task.close()
        if self._reading:
            self._reading.cancel()
            await asyncio.wait([self._reading], timeout=1)

    async def refresh(self) -> None:
        """Read the workers now. Callers at the same time share one read. Raises :class:`Unavailable`."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="read the workers")
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may be left
        await asyncio.shield(self._reading)

    async def look_again(self) -> None:
        """Read the workers now, or keep the last list if the store cannot be reached."""
        with contextlib.suppress(Unavailable):
            await self.refresh()

    async def _read(self) -> None:
        try:
            self.workers, loading = await self._store.execute(workers_and_loading(self.configured))
        except Unavailable:
            self._unbroken = math.inf
            raise
        self._read_at = time.monotonic()
        self._unbroken = min(self._unbroken, self._read_at)
        self._seen.update(dict.fromkeys([*self.models, *loading], self._read_at))

    @property
    def models(self) -> dict[str, ModelInfo]:
        """The models that live workers serve, by name."""
        return {model.name: model for worker in self.workers for model in worker.models}

    def absent_for(self, model: str) -> float:
        """Seconds in which no worker has served or loaded a model, as far as the store could be read without a break.

        While the store cannot be reached nobody knows, and after a break it takes a while until all workers are seen.
        """
        return max(0.0, self._read_at - max(self._unbroken, self._seen.get(model, -math.inf)))

    async def resolve(self, asked: str | None, *, later: bool = False) -> str:
        """The name of the model that a request asks for, perhaps by an alias; None: the default.

        Before a request is refused, the workers are read again: the list may be a second old. And the last worker may
        just be restarted: then the request is queued, and refused if none has come back after ``restart_grace``.

        Args:
            later: accept a configured model without a live worker. The caller polls, so the worker may come later.

        Raises:
            UnknownModel: there is no such model.
            Unavailable: no live worker serves it, or the store cannot be reached.
        """
        try:
            return self._resolve(asked, later)
        except (UnknownModel, Unavailable):
            await self.refresh()
            return self._resolve(asked, later)

    def _resolve(self, asked: str | None, later: bool) -> str:
        model = self._name(asked) if asked else self.default
        if model in self.models or (later and model in self.configured) or self._comes_back(model):
            return model
        check_known(model, self.configured)
        raise self.no_worker(model)

    def _comes_back(self, model: str) -> bool:
        """Whether a worker has served a model, or has been loading it, a moment ago."""
        return model in self._seen and self.absent_for(model) < self._restart_grace

    def _name(self, asked: str) -> str:
        """The model that ``asked`` names: itself if it is served, else by the setting's aliases and the usual ones."""
        name = asked
        for aliases in (self._aliases, ALIASES):
            if name in self.models or name in self.configured:
                break
            name = aliases.get(name, name)
        return name if name in self.models or name in self.configured else name.removeprefix(PREFIX)

    def no_worker(self, model: str) -> Unavailable:
        """The error of a request whose model has no live worker."""
        now = ", ".join(sorted(self.models)) or "none"
        return Unavailable(f"No live worker serves model {model!r} (served now: {now}).", retry_after=5)

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
