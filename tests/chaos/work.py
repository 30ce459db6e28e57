"""What clients do in a storm: submit through both doors, repeat what was cut off, cancel some, and tell the audit."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import httpx
import numpy as np

from tests.chaos.audit import IMAGES, Accepted, Audit, Fate
from tests.images import base64_image

TOO_LONG = "word " * 200
ANSWER = 40.0  # seconds after which an API that lives has said something
AGAIN = (429, 503, 507)  # what a submission is refused with and comes again


class Sender(threading.Thread):
    """A client of one API in a thread of its own. ``error``: what ended it, if anything did."""

    def __init__(self, url: str, name: str, key: str, seed: float, audit: Audit, over: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(ANSWER, connect=5),
            trust_env=False,
        )
        self._rng, self._audit, self._over = random.Random(seed), audit, over
        self._count = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:  # shows in the report
            self.error = error
        finally:
            self._http.close()

    def _work(self) -> None:
        raise NotImplementedError

    def _send(
        self, method: str, path: str, sent: object = None, headers: dict[str, str] | None = None
    ) -> httpx.Response | None:
        """The answer; None where the connection broke."""
        try:
            return self._http.request(method, path, json=sent, headers=headers)
        except httpx.ReadTimeout:
            self._audit.silent()
        except httpx.TransportError:
            time.sleep(0.1)  # nobody listens for the moment
        return None


class Client(Sender):
    """Submits one good thing after the other until told to stop."""

    def _work(self) -> None:
        while not self._over.wait(self._rng.uniform(0, 0.3)):
            self._count += 1
            self._audit.submitted()
            if self._rng.random() < 0.5:
                self._ask()
            else:
                self._submit()

    def _items(self, most: int) -> list[str | int]:
        n = self._rng.randint(1, most)
        if self._rng.random() < 0.25:
            return [self._rng.randrange(len(IMAGES)) for _ in range(n)]
        return [f"{self.name} says {self._count} and {i}" for i in range(n)]

    def _ask(self) -> None:
        """The synchronous door. Who is refused or cut off has no promise, and does not repeat."""
        items = self._items(4)
        self._audit.outage.sent()
        response = self._send("POST", f"/clip/{task(items)}", body(items))
        well = response is not None and response.status_code == 200
        self._audit.outage.ended(well=well)
        if response is None:
            self._audit.refused("cut off")
        elif well:
            self._audit.answered(items, np.array(response.json()["embeddings"], dtype=np.float32))
        else:
            self._audit.refused(str(response.status_code))
            if response.status_code not in (429, 503, 504, 507):
                self._audit.wrong(f"{response.status_code} for a good request: {response.text[:200]}")

    def _submit(self) -> None:
        """The job door. The same submission comes again, under its key, until it is accepted."""
        items, fate = self._items(20), Fate.GOOD
        if isinstance(items[0], str) and self._rng.random() < 0.15:
            items[-1], fate = TOO_LONG, Fate.BAD
        cancel = fate is Fate.GOOD and self._rng.random() < 0.1
        sent = {"task": task(items), **body(items)}
        key = {"Idempotency-Key": f"{self.name}-{self._count}"}
        while (response := self._send("POST", "/jobs", sent, key)) is None or response.status_code in AGAIN:
            self._audit.repeated("cut off" if response is None else str(response.status_code))
            if self._over.wait(0.3):
                return
        if response.status_code not in (200, 202):
            self._audit.wrong(f"{response.status_code} for a good job: {response.text[:200]}")
            return
        job = Accepted(response.json()["id"], items, fate)
        if cancel:
            answer = self._send("DELETE", f"/jobs/{job.id}")
            if answer is None or answer.status_code not in (200, 409):
                job.fate = Fate.EITHER
            elif answer.status_code == 200:
                job.fate = Fate.CANCELLED
        self._audit.accepted(job)


def task(items: list[str | int]) -> str:
    return "embed_text" if isinstance(items[0], str) else "embed_image"


def body(items: list[str | int]) -> dict[str, Any]:
    if isinstance(items[0], str):
        return {"text": items}
    return {"image": [base64_image(IMAGES[int(i)]) for i in items]}
