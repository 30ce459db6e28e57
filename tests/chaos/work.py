"""What clients do in a storm: submit through both doors, repeat what was cut off, cancel some, and keep the books."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

import httpx
import numpy as np
from numpy.typing import NDArray

from tests.images import base64_image, noise_image

IMAGES = [noise_image(seed) for seed in range(6)]
TOO_LONG = "word " * 200
ANSWER = 40.0  # seconds after which an API that lives has said something


class Fate(StrEnum):
    """How a job must end."""

    GOOD = "succeeded"
    BAD = "failed"
    CANCELLED = "cancelled"
    EITHER = "cancelled or succeeded"  # nobody knows whether its cancellation got through


@dataclass
class Accepted:
    """A job that was answered with its id. Its items are texts, or numbers of :data:`IMAGES`."""

    id: str
    items: list[str | int]
    fate: Fate


@dataclass
class Answered:
    """What a synchronous request was answered with."""

    items: list[str | int]
    vectors: NDArray[np.float32]


@dataclass
class Books:
    """What all clients wrote down."""

    submitted: int = 0
    accepted: list[Accepted] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)  # synchronous requests that got an error, by status
    silent: int = 0  # requests that nobody ever answered, although the API lived
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client(threading.Thread):
    """Submits one thing after the other until told to stop."""

    def __init__(self, url: str, name: str, rng: random.Random, books: Books, over: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self._http = httpx.Client(base_url=url, timeout=httpx.Timeout(ANSWER, connect=5), trust_env=False)
        self._rng, self._books, self._over = rng, books, over
        self._count = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._over.wait(self._rng.uniform(0, 0.3)):
                self._count += 1
                with self._books.lock:
                    self._books.submitted += 1
                if self._rng.random() < 0.5:
                    self._ask()
                else:
                    self._submit()
        except Exception as error:  # shows in the report
            self.error = error

    def _items(self, most: int) -> list[str | int]:
        n = self._rng.randint(1, most)
        if self._rng.random() < 0.25:
            return [self._rng.randrange(len(IMAGES)) for _ in range(n)]
        return [f"{self.name} says {self._count} and {i}" for i in range(n)]

    def _ask(self) -> None:
        """The synchronous door. Who is refused or cut off has no promise, and does not repeat."""
        items = self._items(4)
        if (response := self._send("POST", f"/clip/{task(items)}", body(items))) is None:
            self._refused("cut off")
        elif response.status_code == 200:
            vectors = np.array(response.json()["embeddings"], dtype=np.float32)
            with self._books.lock:
                self._books.answered.append(Answered(items, vectors))
        else:
            self._refused(str(response.status_code))

    def _submit(self) -> None:
        """The job door. The same submission comes again, under its key, until it is accepted."""
        items, fate = self._items(20), Fate.GOOD
        if isinstance(items[0], str) and self._rng.random() < 0.15:
            items[-1], fate = TOO_LONG, Fate.BAD
        cancel = fate is Fate.GOOD and self._rng.random() < 0.1
        sent = {"task": task(items), **body(items)}
        key = {"Idempotency-Key": f"{self.name}-{self._count}"}
        while (response := self._send("POST", "/jobs", sent, key)) is None or response.status_code in (429, 503):
            if self._over.wait(0.3):
                return
        if response.status_code not in (200, 202):
            raise AssertionError(f"{response.status_code} for a good job: {response.text[:200]}")
        job = Accepted(response.json()["id"], items, fate)
        with self._books.lock:
            self._books.accepted.append(job)
        if cancel:
            answer = self._send("DELETE", f"/jobs/{job.id}")
            if answer is None or answer.status_code not in (200, 409):
                job.fate = Fate.EITHER
            elif answer.status_code == 200:
                job.fate = Fate.CANCELLED

    def _send(
        self, method: str, path: str, sent: object = None, headers: dict[str, str] | None = None
    ) -> httpx.Response | None:
        """The answer; None where the connection broke."""
        try:
            return self._http.request(method, path, json=sent, headers=headers)
        except httpx.ReadTimeout:
            with self._books.lock:
                self._books.silent += 1
        except httpx.TransportError:
            time.sleep(0.1)  # nobody listens for the moment
        return None

    def _refused(self, how: str) -> None:
        with self._books.lock:
            self._books.refused[how] += 1


def task(items: list[str | int]) -> str:
    return "embed_text" if isinstance(items[0], str) else "embed_image"


def body(items: list[str | int]) -> dict[str, object]:
    if isinstance(items[0], str):
        return {"text": items}
    return {"image": [base64_image(IMAGES[int(i)]) for i in items]}
