"""A seeded storm over a real stack, and the account of it: what was accepted is done, exactly.

Two workers and an API are killed, paused and started again. Beside them, on the same store, stands a deployment of
``clip-queue up``, whose logs are lost; its API and its first worker live from the beginning to the end, so that their
memory tells what an hour leaves. A good tenant's clients ask all of them; a hostile tenant sends expensive images.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil
import redis

from clip_queue.shared.errors import Unavailable
from clip_queue.shared.owners import owner_of
from tests.chaos import hostile
from tests.chaos.audit import Audit
from tests.chaos.footprint import FIRST, Footprint, zombies
from tests.chaos.hostile import Hostile
from tests.chaos.left import computed, kinds_of_keys, left_in
from tests.chaos.log_loss import LogLoss, Up
from tests.chaos.memory_full import MemoryFull
from tests.chaos.outage import OutageClock
from tests.chaos.report import Report
from tests.chaos.skew import Skew
from tests.chaos.stores import OneValkey, SentinelGroup, StormStore
from tests.chaos.weather import Misfortune, Weather
from tests.chaos.work import Client, Sender
from tests.faults import Faults
from tests.harness import Service, Stack, stack, wait_for
from tests.redis_servers import guarded
from tests.release_archive import LAST, unpack

KEY = "good-key"
PARTS = ("images", "logs", "memory", "skew")
CLIENTS = 4
ENEMIES = 2
PASS = 0.2  # seconds that each forward pass takes longer, so that blows fall into the middle of some
START = 240.0  # seconds that the stack may take to start, and again to finish its work when the storm is over
ATTEMPTS = 20  # a storm takes a job's workers down more often than any one job does
DECODING = 1.0  # seconds that an image may take: some of the expensive ones take longer


@dataclass(frozen=True)
class Plan:
    """It rages for ``seconds``, in which the start counts, with ``pause`` seconds between misfortunes.

    Attributes:
        least: seconds that it rages however long the start took.
        ttl: how long results are kept, seconds; an audit that does not look in this time takes jobs for lost.
        expire: wait at the end until all results have expired.
        up_workers: workers of ``clip-queue up``, the last of which is killed.
        skew: seconds that a process of the last release serves, and seconds before each turn.
        without: parts of the storm (of :data:`PARTS`) that are left out, to look at the others.
        sentinel: the store is a master with replicas under Sentinels, and the master is killed.
    """

    seed: int
    seconds: float
    pause: tuple[float, float] = (1.0, 4.0)
    least: float = 20.0
    ttl: float = 90.0
    expire: bool = False
    up_workers: int = 2
    skew: tuple[float, float] = (10.0, 60.0)
    without: tuple[str, ...] = ()
    sentinel: bool = False


def storm(folder: Path, plan: Plan, report: Report) -> None:
    """Let it rage, then account for everything in ``report``, which is true at any moment until then."""
    (folder / "tmp").mkdir()
    env = {
        "TMPDIR": str(folder / "tmp"),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # which the release, importing torch's compiler, makes
    }
    with mock.patch.dict(os.environ, env), contextlib.ExitStack() as end:
        if plan.sentinel:
            group = end.enter_context(guarded(folder))
            # What is accepted has reached both replicas, so that it outlives the master and either of them.
            more: dict[str, object] = {"redis_replicas": 2, "lease": 5}
            it = end.enter_context(stack(folder, redis_url=group.url, **settings(folder, plan), **more))
            store: StormStore = SentinelGroup(group)
        else:
            it = end.enter_context(stack(folder, **settings(folder, plan)))
            store = OneValkey(it.valkey)
        Storm(folder, plan, report, it, store).run()
    report.files += sorted(str(path.relative_to(folder)) for path in (folder / "tmp").rglob("*"))
    for name in report.files:
        report.left.add(f"left: the file {name}")
    report.phase = "over"


def settings(folder: Path, plan: Plan) -> dict[str, object]:
    return {
        "api_keys": f"{KEY},{hostile.KEY}",
        "drain_timeout": 3,
        "request_timeout": 20,
        "max_attempts": ATTEMPTS,
        "decode_timeout": DECODING,
        "result_ttl": plan.ttl,
        "sync_ttl": 30,
        "test_faults": folder / "faults",
    }


class Storm:
    def __init__(self, folder: Path, plan: Plan, report: Report, it: Stack, store: StormStore) -> None:
        self._folder, self._plan, self._report, self._stack, self._store = folder, plan, report, it, store
        self._rng = random.Random(plan.seed)
        self._until = time.monotonic() + plan.seconds
        self._over = threading.Event()
        report.seed, report.minutes = plan.seed, round(plan.seconds / 60, 2)

    def run(self) -> None:
        it, report, plan = self._stack, self._report, self._plan
        report.store = self._store.name
        faults = Faults(self._folder / "faults")
        faults.delay(PASS)
        self._workers, self._api = [it.worker("tests.faulty") for _ in range(2)], it.api()
        self._up = Up(self._folder, plan.up_workers, it.env())
        it.add(self._up)
        it.ready(*self._workers, self._api, timeout=START)
        wait_for(lambda: self._up.ready or not self._up.alive, START, "clip-queue up")
        assert self._up.ready, self._up.tail()
        others = [*self._store.services, self._up]
        self._weather = Weather(self._workers, self._api, others, self._store.client, self._rng, report)
        self._audit = Audit(self._up.url, KEY, report, OutageClock(self._weather.amid))
        senders = self._senders()
        skew = self._skew([sender for sender in senders if isinstance(sender, Hostile)])
        footprint = Footprint(self._processes, FIRST if plan.seconds > 3 * FIRST else plan.least / 2)
        try:
            with self._all_at_work(senders, skew):
                footprint.start()
                report.phase = "the storm"
                self._weather.misfortunes += self._more_misfortunes()
                report.expected = [misfortune.name for misfortune in self._weather.misfortunes]
                report.expected += ["release-worker served", "release-api served"] * bool(skew)
                self._weather.rage(max(self._until, time.monotonic() + plan.least), plan.pause)
            report.phase = "the work that is left"
            # A worker that was terminated last may still have to end and be started again.
            wait_for(self._served, START, "everyone to be back")
            wait_for(lambda: not self._audit.open or self._audit.error, START, "all work to end")
            wait_for(lambda: not self._weather.waiting, START, "the jobs of killed workers to be taken up")
            self._audit.end()
            report.phase = "what is left"
            self._keys()
        finally:
            self._over.set()
            self._audit.end()
            self._weather.end()
            report.outages = self._audit.outage.outages
            report.redeliveries = len(self._weather.redelivered)
            report.slowest = max(self._weather.redelivered, default=0.0)
            report.duplicates = sum(n > 1 for n in computed(faults).values())
            report.processes = footprint.stop()
        for found in zombies(self._processes()):
            report.left.add(f"left: {found}")
        report.phase = "the end"
        self._end()

    # What takes part

    def _senders(self) -> list[Sender]:
        urls = (self._api.url, self._up.url)
        good = [
            Client(urls[n % 2], f"client-{n}", KEY, self._rng.random(), self._audit, self._over) for n in range(CLIENTS)
        ]
        bad = [
            Hostile(urls[n % 2], f"enemy-{n}", hostile.KEY, self._rng.random(), self._audit, self._over)
            for n in range(ENEMIES * ("images" not in self._plan.without))
        ]
        return [*good, *bad]

    def _skew(self, enemies: list[Hostile]) -> Skew | None:
        if "skew" in self._plan.without:
            return None
        seconds, pause = self._plan.skew
        return Skew(
            unpack(LAST, self._folder),
            self._folder,
            self._stack.env(),
            enemies,
            self._audit,
            self._report,
            self._rng,
            key=KEY,
            note=self._weather.note,
            registered=self._registered,
            attacked=self._attacked,
            seconds=seconds,
            pause=pause,
        )

    def _more_misfortunes(self) -> list[Misfortune]:
        memory = MemoryFull(self._store.client, self._rng)
        acts = {"memory limit at what is in use": memory.limit, "memory filled with junk": memory.fill}
        if "memory" in self._plan.without:
            acts.clear()
        if "logs" not in self._plan.without:
            acts |= LogLoss(self._up, self._rng, self._report).ways()
        more = [Misfortune(name, act) for name, act in acts.items()]
        return [*self._store.misfortunes(self._weather), *more]

    @contextlib.contextmanager
    def _all_at_work(self, senders: list[Sender], skew: Skew | None) -> Iterator[None]:
        """Everyone works within; afterwards all is calm, and nobody sends any more."""
        self._audit.start()
        for thread in (*senders, *([skew] if skew else [])):
            thread.start()
        try:
            yield
            self._report.phase = "the last turn of the release"
            if skew:
                skew.end()
                skew.join(START)
                if skew.error:
                    raise skew.error
        finally:
            self._over.set()
        self._weather.calm()
        self._report.phase = "the clients' last requests"
        for sender in senders:
            sender.join(START)
            if sender.error:
                raise sender.error

    # What it looks like

    def _registered(self) -> set[int]:
        """Process ids of the workers that the store knows alive; none while it is away itself."""
        try:
            return self._stack.workers()
        except Unavailable:
            return set()

    def _served(self) -> bool:
        children = self._up.children()
        ours = {worker.pid for worker in self._workers}
        ours |= {process.pid for name, process in children.items() if name != "api"}
        return (
            len(children) == self._plan.up_workers + 1
            and self._registered() >= ours
            and self._api.ready()
            and not self._audit.error
        )

    def _attacked(self) -> bool:
        """Whether the store has unfinished work of the hostile tenant, as far as it says."""
        try:
            with self._store.client() as client:
                ids = client.zrange("cq:open:emoji-mini", 0, -1)
                owners = [client.hget(f"cq:job:{raw.decode()}", "owner") for raw in ids]
        except redis.RedisError:
            return True
        return owner_of(hostile.KEY).encode() in owners

    def _processes(self) -> dict[str, psutil.Process]:
        services: list[Service] = [*self._store.services, *self._workers, self._api, self._up]
        found = {}
        for service in services:
            with contextlib.suppress(psutil.Error):
                found[service.name] = psutil.Process(service.pid)
        found |= {f"up's {name}": process for name, process in self._up.children().items()}
        return {**found, "this storm": psutil.Process()}

    def _keys(self) -> None:
        """Count the keys, and find those that should not be. Probes of readiness come and go."""
        client = self._store.client()
        until = time.monotonic() + 30 + self._plan.expire * self._plan.ttl
        while (left := left_in(client, ever=self._plan.expire)) and time.monotonic() < until:
            time.sleep(0.5)
        for what in left:
            self._report.left.add(what)
        self._report.keys = kinds_of_keys(client)
        client.close()

    def _end(self) -> None:
        """All processes end when told to, and leave nothing."""
        children = self._up.children()
        code = self._up.stop(60)
        if code:
            self._report.wrong.add(f"up ended with {code}:\n{self._up.tail()}")
        for name, process in children.items():
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                self._report.left.add(f"left: {name} of up, pid {process.pid}")
        for service in (self._api, *self._workers):
            service.stop(60)
        expected = {"valkey.conf", "lock", "logs"}
        self._report.files += [f"data/{path.name}" for path in self._up.data.iterdir() if path.name not in expected]
