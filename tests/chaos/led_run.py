"""The run of a storm that nobody waits for: the workers lead it, and whoever leads it is killed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from clip_queue.shared import ops, runs
from clip_queue.shared.errors import Unavailable
from clip_queue.shared.job import FINAL, Job, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.owners import OPEN
from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from tests.bulk_command import count_complete
from tests.harness import Service, Stack


class LedRun:
    """A run into ``output`` that was given to the workers of a stack, as ``clip-queue embed --detach`` gives it."""

    def __init__(self, it: Stack, source: str, output: Path, options: dict[str, object]) -> None:
        self.output = output
        self._store = Store.connect(Settings(redis_url=it.redis_url))  # type: ignore[arg-type]
        self._job = Job(Kind.EMBED_DATASET, "emoji-mini", 0, Lane.BULK, owner=OPEN, ttl=3_600_000)
        self._request = runs.RunRequest([source], str(output), options, confined=False)

    def start(self) -> None:
        self._store.execute(runs.accept_run(runs.RunSubmission(self._job, self._request, 100)))

    def look(self) -> Job | None:
        """Its record; None while the store is away."""
        with suppress(Unavailable):
            return self._store.execute(ops.view(self._job.id)).job
        return None

    @property
    def over(self) -> bool:
        job = self.look()
        return job is not None and job.state in FINAL

    def leader(self, workers: list[Service]) -> Service | None:
        """The worker that leads it, once some of its shards are whole."""
        job = self.look()
        if job is None or job.state is not State.RUNNING or not count_complete(self.output):
            return None
        return next((each for each in workers if each.alive and f"-{each.pid}-" in job.worker), None)

    def close(self) -> list[str]:
        """What is wrong with its end."""
        job = self.look()
        self._store.close()
        if job is None or job.state is not State.SUCCEEDED:
            return [f"the run that workers lead ended as {job and (job.state, job.error)}"]
        return []
