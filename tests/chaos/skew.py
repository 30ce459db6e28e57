"""Version skew: a worker and an API of the last release run for a while beside today's, on the same store.

The release does not know today's bounds on what an image may cost. So hostile clients rest meanwhile, and what they
have sent before ends first.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.audit import Audit
from tests.chaos.hostile import Hostile
from tests.chaos.report import Report
from tests.chaos.work import Client
from tests.harness import Api, Service
from tests.release_archive import LAST_API, LAST_HTTP, LAST_WORKER

START = 90.0  # seconds that a process of the release may take to serve
QUIET = 60.0  # seconds that hostile work may take to end
END = 30.0  # seconds that a process of the release may take to end on SIGTERM


def release_worker(release: Path, folder: Path, env: dict[str, str]) -> Service:
    """A worker of the release whose code is in ``release``, not started. ``env``: its settings."""
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO", "-n", "worker-release@%h"]
    celery = [sys.executable, "-m", "celery", "-A", LAST_WORKER, "worker", "--pool", "threads"]
    return Service("release-worker", [*celery, *flags], folder, env, release)


class Skew(threading.Thread):
    """In turn a worker and an API of the release, each for ``seconds``, with ``pause`` seconds before each turn.

    ``attacked`` says whether the store has unfinished work of a hostile client, ``registered`` which processes are live
    workers. ``error``: what ended the thread, if anything did.
    """

    def __init__(
        self,
        release: Path,
        folder: Path,
        env: dict[str, str],
        hostile: list[Hostile],
        audit: Audit,
        report: Report,
        rng: random.Random,
        *,
        key: str,
        note: Callable[[str], None],
        registered: Callable[[], set[int]],
        attacked: Callable[[], bool],
        seconds: float,
        pause: float,
    ) -> None:
        super().__init__(name="skew", daemon=True)
        self._worker = release_worker(release, folder, env)
        self._api = Api(LAST_API, folder, "release-api", env, LAST_HTTP, release)
        self._hostile, self._audit, self._report, self._seed = hostile, audit, report, rng.random()
        self._key, self._note, self._registered, self._attacked = key, note, registered, attacked
        self._seconds, self._pause = seconds, pause
        self._over = threading.Event()
        self.turns = 0
        self.error: Exception | None = None

    def services(self) -> list[Service]:
        return [self._worker, self._api]

    def end(self) -> None:
        """At the end of the turn under way, and not before there was one."""
        self._over.set()

    def run(self) -> None:
        try:
            while not (self._over.wait(self._pause) and self.turns):
                self._turn()
        except Exception as error:  # shows in the report
            self.error = error

    def _turn(self) -> None:
        for hostile in self._hostile:
            hostile.quiet = True
        try:
            if not within(QUIET, lambda: not any(h.busy for h in self._hostile) and not self._attacked()):
                raise AssertionError(f"hostile work had not ended after {QUIET:g} s")
            self._note("a worker of the release")
            self._serve(self._worker, lambda: self._worker.pid in self._registered(), lambda: time.sleep(self._seconds))
            self._note("an API of the release")
            self._serve(self._api, self._api.ready, self._use_api)
            self.turns += 1
        finally:
            for hostile in self._hostile:
                hostile.quiet = False

    def _serve(self, service: Service, ready: Callable[[], bool], use: Callable[[], None]) -> None:
        """Start a process of the release, use it, and end it."""
        service.start()
        try:
            if within(START, lambda: ready() or not service.alive) and service.alive:
                use()
            if not service.alive:  # it knows less of a store that goes away than today's
                self._report.ended_early[service.name] += 1
            elif service is self._worker or ready():
                self._report.misfortunes[f"{service.name} served"] += 1
            service.signal(signal.SIGTERM)
            if not within(END, lambda: not service.alive):
                self._report.ended_early[f"{service.name} killed, for it did not end"] += 1
        finally:
            service.kill()

    def _use_api(self) -> None:
        over = threading.Event()
        client = Client(self._api.url, f"release-{self.turns}", self._key, self._seed, self._audit, over)
        client.start()
        time.sleep(self._seconds)
        over.set()
        client.join(60)
        if client.error:
            raise client.error


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Whether something comes to be true in so many seconds."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
