"""A seeded storm over a real stack, and the account of it: what was accepted is done, exactly."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import redis
from numpy.typing import NDArray

from clip_queue.shared.errors import Unavailable
from clip_queue.shared.models import CATALOGUE
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode
from tests.chaos.weather import Weather
from tests.chaos.work import IMAGES, Accepted, Books, Client, Fate
from tests.faults import Faults
from tests.harness import Api, Stack, stack, wait_for
from tests.jobs_api import FINAL

EXACT = 1e-5  # how far a vector may be off, as a part of its length
CLIENTS = 4
PASS = 0.2  # seconds that each forward pass takes longer, so that blows fall into the middle of some
START = 240.0  # seconds that the stack may take to start, and again to finish its work when the storm is over
ATTEMPTS = 20  # a storm takes a job's workers down more often than any one job does
# Keys without a time to live: one each, however much work goes through.
ETERNAL = ("cq:load", "cq:workers", "cq:held", "cq:kept", "_kombu.binding")


@dataclass
class Report:
    submitted: int = 0
    accepted: int = 0
    answered: int = 0  # synchronous requests with 200
    refused: Counter[str] = field(default_factory=Counter)
    succeeded: int = 0
    cancelled: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    silent: int = 0
    left: list[str] = field(default_factory=list)  # what should be empty or gone, and is not
    misfortunes: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0  # texts that went through the model more than once
    redeliveries: int = 0
    slowest: float = 0.0  # longest time from a worker's end to its job's next start, seconds

    def table(self) -> str:
        rows: list[tuple[str, object]] = [
            ("submitted", self.submitted),
            ("accepted jobs", self.accepted),
            ("  succeeded", self.succeeded),
            ("  cancelled by their owners", self.cancelled),
            *((f"  failed: {reason}", n) for reason, n in sorted(self.failed.items())),
            ("  lost", len(self.lost)),
            ("synchronous requests answered", self.answered),
            *((f"  refused: {how}", n) for how, n in sorted(self.refused.items())),
            ("  never answered", self.silent),
            ("wrong", len(self.wrong)),
            ("left behind", len(self.left)),
            ("duplicate runs", self.duplicates),
            ("jobs of killed workers taken up again", self.redeliveries),
            ("longest time to redelivery, s", f"{self.slowest:.1f}"),
            *((what, n) for what, n in sorted(self.misfortunes.items())),
        ]
        lines = [f"{name:<42}{value:>8}" for name, value in rows]
        return "\n".join([*lines, *self.lost[:5], *self.wrong[:5], *self.left[:5]])


def storm(folder: Path, *, seed: int, seconds: float, pause: tuple[float, float] = (1.0, 4.0)) -> Report:
    """Let it rage for ``seconds``, then account for everything. ``pause``: seconds between misfortunes."""
    rng = random.Random(seed)
    settings = {"drain_timeout": 3, "request_timeout": 20, "max_attempts": ATTEMPTS, "test_faults": folder / "faults"}
    with stack(folder, **settings) as it:
        # Every write is on disk before it is answered, so that even kill -9 may not lose one.
        it.valkey.client().config_set("appendfsync", "always")
        it.valkey.command += ["--appendfsync", "always"]
        faults = Faults(folder / "faults")
        faults.delay(PASS)
        workers, api = [it.worker("tests.faulty") for _ in range(2)], it.api()
        it.ready(*workers, api, timeout=START)
        books, over = Books(), threading.Event()
        clients = [Client(api.url, f"client-{i}", random.Random(rng.random()), books, over) for i in range(CLIENTS)]
        weather = Weather(it, workers, api, rng)
        for client in clients:
            client.start()
        weather.rage(time.monotonic() + seconds, pause)
        over.set()
        weather.calm()
        for client in clients:
            client.join(START)
            if client.error:
                raise client.error
        report = Report(books.submitted, len(books.accepted), len(books.answered), books.refused, silent=books.silent)
        # A worker that was terminated last may still have to end and be started again.
        wait_for(lambda: served(it) >= {worker.pid for worker in workers} and api.ready(), START, "everyone to be back")
        documents = collect(api, books.accepted)
        wait_for(lambda: not weather.waiting, START, "the jobs of killed workers to be taken up")
        weather.end()
        report.misfortunes = weather.done
        report.redeliveries, report.slowest = len(weather.redelivered), max(weather.redelivered, default=0.0)
        report.duplicates = sum(n > 1 for n in computed(faults).values())
        report.left = left_behind(it)
    account(report, books, documents)
    return report


def served(it: Stack) -> set[int]:
    """Process ids of the workers that the store knows alive; none while it is away itself."""
    try:
        return it.workers()
    except Unavailable:
        return set()


def collect(api: Api, jobs: list[Accepted]) -> dict[str, dict[str, Any]]:
    """The documents of all jobs once they have ended; those that do not exist, or do not end in time, are left out."""
    documents: dict[str, dict[str, Any]] = {}
    until = time.monotonic() + START
    with api.client() as http:
        for job in jobs:
            while time.monotonic() < until:
                try:
                    response = http.get(f"/jobs/{job.id}", params={"wait": 5})
                except httpx.TransportError:
                    continue
                if response.status_code == 404:
                    break
                if response.status_code == 200 and response.json()["state"] in FINAL:
                    documents[job.id] = response.json()
                    break
    return documents


def account(report: Report, books: Books, documents: dict[str, dict[str, Any]]) -> None:
    reference = Reference(
        [*(a.items for a in books.answered), *(j.items for j in books.accepted if j.fate is not Fate.BAD)]
    )
    for job in books.accepted:
        document = documents.get(job.id)
        if document is None:
            report.lost.append(f"lost: {job.id} ({job.fate})")
            continue
        state, error = document["state"], document["error"] or {}
        if state == "succeeded":
            report.succeeded += 1
        elif state == "cancelled":
            report.cancelled += 1
        else:
            report.failed[error.get("code", state)] += 1
        blamed = len(job.items) - 1 if len(job.items) > 1 else None  # the place of the item that is too long
        if job.fate is Fate.BAD:
            as_it_must = (state, error.get("code"), error.get("index")) == ("failed", "text_too_long", blamed)
        else:
            as_it_must = state in job.fate.split(" or ")
        if not as_it_must:
            report.wrong.append(f"wrong: {job.id} should have {job.fate}, but {state}: {error}")
        elif state == "succeeded" and not reference.equals(job.items, document["result"]["embeddings"]):
            report.wrong.append(f"wrong vectors: {job.id}")
    report.wrong += ["wrong vectors: an answer" for a in books.answered if not reference.equals(a.items, a.vectors)]


class Reference:
    """The vectors of all items, computed in this process."""

    def __init__(self, groups: list[list[str | int]]) -> None:
        clip = ClipModel(CATALOGUE["emoji-mini"], Settings(device="cpu", precision="fp32"))
        texts = sorted({item for items in groups for item in items if isinstance(item, str)})
        self._rows: dict[str | int, NDArray[np.float32]] = {}
        for i in range(0, len(texts), 64):
            some = texts[i : i + 64]
            self._rows.update(zip(some, clip.embed_texts([clip.tokenizer(t) for t in some]).result(), strict=True))
        pixels = [decode(p, clip.preprocess, max_bytes=2**24, max_pixels=2**24) for p in IMAGES]
        self._rows.update(enumerate(clip.embed_images(pixels).result()))

    def equals(self, items: list[str | int], vectors: Any) -> bool:
        got = np.array(vectors, dtype=np.float32)
        expected = np.stack([self._rows[item] for item in items])
        if got.shape != expected.shape:
            return False
        off = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
        return bool(off.max() <= EXACT)


def computed(faults: Faults) -> Counter[str]:
    """How often each text went into a forward pass."""
    return Counter(item for p in faults.passes() for item in p.items if " says " in item)


def left_behind(it: Stack) -> list[str]:
    """What a stack that has done all its work still holds, and should not. Probes of readiness come and go."""
    client = it.valkey.client()
    until = time.monotonic() + 30
    while (left := _left(client)) and time.monotonic() < until:
        time.sleep(0.2)
    client.close()
    return left


def _left(client: redis.Redis) -> list[str]:
    left = [f"left: load {name!r} {n!r}" for name, n in client.hgetall("cq:load").items() if int(n)]
    keys = [raw.decode() for raw in client.keys("*")]
    return left + [f"left: {k} without an end" for k in keys if not k.startswith(ETERNAL) and client.pttl(k) == -1]
