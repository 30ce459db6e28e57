"""What befalls a stack in a storm, and the supervisor that starts again what ended."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import redis

from tests.chaos.report import Report
from tests.harness import Service, wait_for

PERIOD = 0.1  # seconds between the supervisor's looks
BUSY = 60.0  # seconds that a worker may take to have a job, on a loaded machine, before it is killed without one


@dataclass(frozen=True)
class Misfortune:
    """``act`` does it, and returns when it is over. ``often``: how many of them there are in a round."""

    name: str
    act: Callable[[], None]
    often: int = 1


class Weather:
    """KILL, TERM or STOP (for a while) to a worker or the API, and what is added to ``misfortunes``.

    ``others`` are services that are also started again when they have ended; no misfortune here ends them. ``client``
    connects to the store. ``redelivered``: seconds from a worker's end to its job's next start, or end.
    """

    def __init__(
        self,
        workers: list[Service],
        api: Service,
        others: list[Service],
        client: Callable[[], redis.Redis],
        rng: random.Random,
        report: Report,
    ) -> None:
        self._workers, self._api, self._connect, self.rng, self._report = workers, api, client, rng, report
        self._everyone = [*others, *workers, api]
        self._calm = threading.Event()
        self._away: set[Service] = set()  # to be left ended for the moment
        self._ours: set[Service] = set()  # whose end was a misfortune
        self._orphans: dict[str, tuple[float, str]] = {}  # jobs of ended workers: when it ended, which
        self._latest: deque[str] = deque(maxlen=3)
        self.misfortunes = [
            Misfortune("kill a worker", self._kill_worker, 2),
            Misfortune("terminate a worker", self._terminate_worker),
            Misfortune("pause a worker", self._pause_worker),
            Misfortune("kill the API", self._kill_api),
            Misfortune("pause the API", self._pause_api),
        ]
        self.redelivered: list[float] = []
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._supervisor.start()

    def rage(self, until: float, pause: tuple[float, float]) -> None:
        """One misfortune after the other, at least one of each, until ``until`` (monotonic)."""
        done: set[str] = set()
        for misfortune in self._forever():
            if time.monotonic() > until and len(done) == len(self.misfortunes):
                return
            if time.monotonic() > until and misfortune.name in done:
                continue
            self.note(misfortune.name)
            done.add(misfortune.name)
            misfortune.act()
            time.sleep(self.rng.uniform(*pause))

    def note(self, what: str) -> None:
        self._report.misfortunes[what] += 1
        self._latest.append(what)

    def amid(self) -> str:
        """The latest misfortunes."""
        return ", ".join(self._latest)

    def calm(self) -> None:
        """Everything runs again, and goes on running."""
        for service in self._everyone:
            service.signal(signal.SIGCONT)
        wait_for(lambda: all(service.alive for service in self._everyone), 30, "all to have been started again")

    def end(self) -> None:
        self._calm.set()
        self._supervisor.join(10)

    @property
    def waiting(self) -> bool:
        """Whether a job of an ended worker has not been taken up yet."""
        return bool(self._orphans)

    def _forever(self) -> Iterator[Misfortune]:
        while True:
            some = [misfortune for misfortune in self.misfortunes for _ in range(misfortune.often)]
            self.rng.shuffle(some)
            yield from some

    def _kill_worker(self) -> None:
        """KILL the worker that is busier. One that has just been started is waited for until it holds a job."""
        until = time.monotonic() + BUSY
        while True:
            worker, held = max(((w, self._held(w)) for w in self._workers), key=lambda pair: len(pair[1]))
            if held or time.monotonic() > until:
                break
            time.sleep(PERIOD)
        self._end(worker, signal.SIGKILL)
        now = time.monotonic()
        for job, holder in held.items():
            self._orphans[job] = (now, holder)

    def _terminate_worker(self) -> None:
        self._end(self.rng.choice(self._workers), signal.SIGTERM)

    def _pause_worker(self) -> None:
        self.pause(self.rng.choice(self._workers), self.rng.uniform(1, 6))

    def _kill_api(self) -> None:
        self._end(self._api, signal.SIGKILL)

    def _pause_api(self) -> None:
        self.pause(self._api, self.rng.uniform(0.5, 3))

    def _end(self, service: Service, number: signal.Signals) -> None:
        self._ours.add(service)
        service.signal(number)

    def pause(self, service: Service, seconds: float) -> None:
        service.signal(signal.SIGSTOP)
        time.sleep(seconds)
        service.signal(signal.SIGCONT)

    def take_away(self, service: Service, number: signal.Signals, seconds: float) -> None:
        """End a service by a signal, and start it again only after so many seconds."""
        with self.away(service, number):
            time.sleep(seconds)

    @contextlib.contextmanager
    def away(self, service: Service, number: signal.Signals) -> Iterator[None]:
        """End a service by a signal; it is started again after the block."""
        self._away.add(service)
        try:
            self._end(service, number)
            yield
        finally:
            self._away.discard(service)

    # The supervisor's thread

    def _supervise(self) -> None:
        while not self._calm.wait(PERIOD):
            for service in self._everyone:
                if not service.alive and service not in self._away:
                    if service not in self._ours:
                        self._report.ended_early[service.name] += 1
                    self._ours.discard(service)
                    Service.start(service)  # not Valkey's own, which waits until it answers: here nobody waits
            self._watch()

    def _watch(self) -> None:
        """Which jobs of ended workers have been taken up by now."""
        if not self._orphans:
            return
        with contextlib.suppress(redis.RedisError, OSError), self._connect() as client:
            for job, (ended, holder) in list(self._orphans.items()):
                state, worker = client.hmget(f"cq:job:{job}", "state", "worker")
                if state == b"queued" or (state == b"running" and worker == holder.encode()):
                    continue
                del self._orphans[job]
                if state in (b"running", b"succeeded"):
                    self.redelivered.append(time.monotonic() - ended)

    def _held(self, worker: Service) -> dict[str, str]:
        """The jobs that a worker holds, and its name in the store."""
        held: dict[str, str] = {}
        with contextlib.suppress(redis.RedisError, OSError), self._connect() as client:
            for raw in client.zrange("cq:open:emoji-mini", 0, -1):
                state, holder = client.hmget(f"cq:job:{raw.decode()}", "state", "worker")
                if state == b"running" and f"-{worker.pid}-" in holder.decode():
                    held[raw.decode()] = holder.decode()
        return held
