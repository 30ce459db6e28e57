"""What befalls a stack in a storm, and the supervisor that starts again what ended."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import redis

from tests.harness import Service, Stack, wait_for

PERIOD = 0.1  # seconds between the supervisor's looks
KINDS = 8  # of misfortune


class Weather:
    """``kinds`` of misfortune: KILL, TERM or STOP (for a while), each to a worker, the API or Valkey."""

    def __init__(self, stack: Stack, workers: list[Service], api: Service, rng: random.Random) -> None:
        self._stack, self._workers, self._api, self._rng = stack, workers, api, rng
        self._client = redis.Redis(port=stack.valkey.port, socket_timeout=1)
        self._calm = threading.Event()
        self._away: set[Service] = set()  # to be left ended for the moment
        self._orphans: dict[str, tuple[float, str]] = {}  # jobs of ended workers: when it ended, which
        self.done: Counter[str] = Counter()
        self.redelivered: list[float] = []  # seconds from a worker's end to its job's next start, or end
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._supervisor.start()

    def rage(self, until: float, pause: tuple[float, float]) -> None:
        """One misfortune after the other, at least one of each, until ``until`` (monotonic)."""
        for act in self._acts():
            if time.monotonic() > until and len(self.done) == KINDS:
                return
            act()
            time.sleep(self._rng.uniform(*pause))

    def calm(self) -> None:
        """Everything runs again, and goes on running."""
        everyone = (*self._workers, self._api, self._stack.valkey)
        for service in everyone:
            service.signal(signal.SIGCONT)
        wait_for(lambda: all(service.alive for service in everyone), 10, "the supervisor to have started all again")

    def end(self) -> None:
        self._calm.set()
        self._supervisor.join(10)
        self._client.close()

    @property
    def waiting(self) -> bool:
        """Whether a job of an ended worker has not been taken up yet."""
        return bool(self._orphans)

    def _acts(self) -> Iterator[Callable[[], None]]:
        while True:
            acts = self._all()
            self._rng.shuffle(acts)
            yield from acts

    def _all(self) -> list[Callable[[], None]]:
        to_workers = [self._kill_worker, self._kill_worker, self._terminate_worker, self._pause_worker]
        to_valkey = [self._stop_valkey, self._kill_valkey, self._pause_valkey]
        return [*to_workers, *to_valkey, self._kill_api, self._pause_api]

    def _kill_worker(self) -> None:
        self._note("kill a worker")
        worker, held = max(((w, self._held(w)) for w in self._workers), key=lambda pair: len(pair[1]))  # the busier
        worker.signal(signal.SIGKILL)
        now = time.monotonic()
        for job, holder in held.items():
            self._orphans[job] = (now, holder)

    def _terminate_worker(self) -> None:
        self._note("terminate a worker")
        self._rng.choice(self._workers).signal(signal.SIGTERM)

    def _pause_worker(self) -> None:
        self._note("pause a worker")
        self._pause(self._rng.choice(self._workers), self._rng.uniform(1, 6))

    def _kill_api(self) -> None:
        self._note("kill the API")
        self._api.signal(signal.SIGKILL)

    def _pause_api(self) -> None:
        self._note("pause the API")
        self._pause(self._api, self._rng.uniform(0.5, 3))

    def _stop_valkey(self) -> None:
        self._note("stop Valkey")
        self._take_away(self._stack.valkey, signal.SIGTERM)

    def _kill_valkey(self) -> None:
        self._note("kill Valkey")
        self._take_away(self._stack.valkey, signal.SIGKILL)

    def _pause_valkey(self) -> None:
        self._note("pause Valkey")
        self._pause(self._stack.valkey, self._rng.uniform(0.5, 3))

    def _note(self, what: str) -> None:
        self.done[what] += 1

    def _pause(self, service: Service, seconds: float) -> None:
        service.signal(signal.SIGSTOP)
        time.sleep(seconds)
        service.signal(signal.SIGCONT)

    def _take_away(self, service: Service, number: signal.Signals) -> None:
        self._away.add(service)
        service.signal(number)
        time.sleep(self._rng.uniform(0, 4))
        self._away.discard(service)

    # The supervisor's thread

    def _supervise(self) -> None:
        while not self._calm.wait(PERIOD):
            for service in (self._stack.valkey, *self._workers, self._api):
                if not service.alive and service not in self._away:
                    Service.start(service)  # not Valkey's own, which waits until it answers: here nobody waits
            self._watch()

    def _watch(self) -> None:
        """Which jobs of ended workers have been taken up by now."""
        for job, (ended, holder) in list(self._orphans.items()):
            try:
                state, worker = self._client.hmget(f"cq:job:{job}", "state", "worker")
            except redis.RedisError:
                return
            if state == b"queued" or (state == b"running" and worker == holder.encode()):
                continue
            del self._orphans[job]
            if state in (b"running", b"succeeded"):
                self.redelivered.append(time.monotonic() - ended)

    def _held(self, worker: Service) -> dict[str, str]:
        """The jobs that a worker holds, and its name in the store."""
        held: dict[str, str] = {}
        try:
            for raw in self._client.zrange("cq:open:emoji-mini", 0, -1):
                state, holder = self._client.hmget(f"cq:job:{raw.decode()}", "state", "worker")
                if state == b"running" and f"-{worker.pid}-" in holder.decode():
                    held[raw.decode()] = holder.decode()
        except redis.RedisError:
            pass
        return held
