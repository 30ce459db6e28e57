"""Workers that can be made to fail, and an API, around one Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import httpx

from clip_queue.shared.settings import Settings
from clip_queue.shared.store import Store
from tests.faults import Faults
from tests.harness import Api, Service, Stack, wait_for
from tests.jobs_api import look, submit_texts

START = 240.0  # most seconds that a process takes to start on a loaded machine


@dataclass
class Team:
    """Faulty workers, an API, and a client of it."""

    stack: Stack
    faults: Faults
    api: Api
    workers: list[Service]
    http: httpx.Client

    @classmethod
    def start(cls, it: Stack, size: int) -> Team:
        faults = Faults(it.folder / "faults")
        it.settings["test_faults"] = faults.folder
        workers, api = [it.worker("tests.faulty") for _ in range(size)], it.api()
        it.ready(*workers, api, timeout=START)
        return cls(it, faults, api, workers, api.client())

    def another_api(self, app: str = "clip_queue.api.app:app", **settings: object) -> Api:
        api = self.stack.api(app, **settings)
        self.stack.ready(api, timeout=START)
        return api

    def heal(self) -> None:
        """Remove all faults, and start the workers that have ended."""
        self.faults.clear()
        self.tend()
        self.stack.ready(*self.workers, timeout=START)

    def tend(self) -> None:
        """Start the workers that have ended, as a supervisor does."""
        for worker in self.workers:
            if not worker.alive:
                worker.start()

    def at_work_on(self, text: str) -> Service:
        """Wait until a worker has begun a pass with a text; returns the worker."""
        wait_for(lambda: self.faults.computed(text), 60, f"a pass with {text!r}")
        pid = next(p.pid for p in reversed(self.faults.passes()) if text in p.items)
        return next(worker for worker in self.workers if worker.pid == pid)

    @contextmanager
    def busy(self, delay: float = 0.3) -> Iterator[list[str]]:
        """Fill the background lane: a lone worker runs two jobs, and a third one has to wait.

        Yields the ids of the two jobs, which run for hundreds of passes of ``delay`` seconds.
        """
        self.faults.delay(delay)
        running: list[str] = []
        for slot in "first", "second":
            name = f"{slot} {uuid4().hex[:4]}"
            running.append(submit_texts(self.http, *(f"{name} {i}" for i in range(1000))))
            wait_for(lambda: look(self.http, running[-1])["state"] == "running", 60, "a slot to be taken")
        try:
            yield running
        finally:
            for job_id in running:
                self.http.delete(f"/jobs/{job_id}")
            self.faults.clear()

    def settings(self) -> Settings:
        return Settings(redis_url=self.stack.valkey.url)  # type: ignore[arg-type]

    def store(self) -> Store:
        return Store.connect(self.settings())
