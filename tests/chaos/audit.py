"""The audit: each accepted job is looked at until it has ended, and each vector held against the right one.

It goes on while the storm rages, because results expire, and an hour's vectors would fill this process.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from clip_queue.shared.models import CATALOGUE
from clip_queue.shared.settings import Settings
from clip_queue.worker.inference.clip_model import ClipModel
from clip_queue.worker.inference.decode import decode
from tests.chaos.outage import OutageClock
from tests.chaos.report import Report
from tests.images import noise_image
from tests.jobs_api import FINAL

IMAGES = [noise_image(seed) for seed in range(6)]
EXACT = 1e-5  # how far a vector may be off, as a part of its length
BETWEEN = 0.2  # seconds between two looks at all jobs
WAITING = 20_000  # answers that may wait for their check


class Fate(StrEnum):
    """How a job must end."""

    GOOD = "succeeded"
    BAD = "failed"
    CANCELLED = "cancelled"
    EITHER = "cancelled or succeeded"  # nobody knows whether its cancellation got through
    ANY = "succeeded or failed or expired"  # expensive images: but it must end


@dataclass
class Accepted:
    """A job that was answered with its id. Its items are texts, or numbers of :data:`IMAGES`."""

    id: str
    items: list[str | int]
    fate: Fate
    key: str = ""  # whose it is, where that is not the good tenant
    since: float = field(default_factory=time.monotonic)


class Audit(threading.Thread):
    """The clients' books, and the thread that checks them. ``key``: the good tenant's.

    The methods are for all threads. ``error``: what ended the thread, if anything did.
    """

    def __init__(self, url: str, key: str, report: Report, outage: OutageClock) -> None:
        super().__init__(name="audit", daemon=True)
        self.outage = outage
        self.error: Exception | None = None
        self._http = httpx.Client(base_url=url, timeout=httpx.Timeout(10, connect=2), trust_env=False)
        self._key, self._report = key, report
        self._lock = threading.Lock()
        self._open: dict[str, Accepted] = {}
        self._answers: queue.Queue[tuple[list[str | int], NDArray[np.float32]]] = queue.Queue(WAITING)
        self._over = threading.Event()

    # What the clients tell

    def submitted(self) -> None:
        with self._lock:
            self._report.submitted += 1

    def silent(self) -> None:
        with self._lock:
            self._report.silent += 1

    def refused(self, how: str) -> None:
        with self._lock:
            self._report.refused[how] += 1

    def repeated(self, how: str) -> None:
        with self._lock:
            self._report.repeated[how] += 1

    def hostile(self, how: str) -> None:
        with self._lock:
            self._report.hostile[how] += 1

    def wrong(self, what: str) -> None:
        self._report.wrong.add(what)

    def answered(self, items: list[str | int], vectors: NDArray[np.float32]) -> None:
        with self._lock:
            self._report.answered += 1
        self._answers.put((items, vectors), timeout=60)

    def accepted(self, job: Accepted) -> None:
        with self._lock:
            self._report.accepted += 1
            self._open[job.id] = job

    @property
    def open(self) -> int:
        """Accepted jobs that have not been seen to end, and answers that have not been checked."""
        with self._lock:
            return len(self._open) + self._answers.unfinished_tasks

    def end(self) -> None:
        """What is still open has been lost. It may be called again."""
        self.outage.stop()
        self._over.set()
        self.join(30)
        while self._open:
            _, job = self._open.popitem()
            age = time.monotonic() - job.since
            self._report.lost.add(f"lost: {job.id} ({job.fate}) had not ended after {age:.0f} s")
        if self.error:
            self._report.wrong.add(f"the audit ended: {self.error!r}")

    # The thread

    def run(self) -> None:
        try:
            reference = Reference()
            while not self._over.wait(BETWEEN):
                self._check_answers(reference)
                with self._lock:
                    jobs = list(self._open.values())
                for job in jobs:
                    if self._over.is_set() or not self._look(job, reference):
                        break
        except Exception as error:  # shows in the report
            self.error = error
        finally:
            self._http.close()

    def _check_answers(self, reference: Reference) -> None:
        while True:
            try:
                items, vectors = self._answers.get_nowait()
            except queue.Empty:
                return
            if not reference.equals(items, vectors):
                self._report.wrong.add(f"wrong vectors: an answer to {items[:2]}")
            self._answers.task_done()

    def _look(self, job: Accepted, reference: Reference) -> bool:
        """Look at a job, and account for it if it has ended. False where the API does not answer for the moment."""
        try:
            head = {"Authorization": f"Bearer {job.key or self._key}"}
            response = self._http.get(f"/jobs/{job.id}", headers=head)
        except httpx.TransportError:
            return False
        if response.status_code == 404:
            self._report.lost.add(f"lost: {job.id} ({job.fate}): {response.text[:200]}")
        elif response.status_code == 200:
            document = response.json()
            if document["state"] not in FINAL:
                return True
            if document["state"] == "succeeded" and document["result"] is None:  # it expires a moment before its record
                self._report.lost.add(f"lost: {job.id} ({job.fate}): its result had expired")
            else:
                self._account(job, document, reference)
        else:
            return response.status_code in (429, 503)
        with self._lock:
            self._open.pop(job.id, None)
        return True

    def _account(self, job: Accepted, document: dict[str, Any], reference: Reference) -> None:
        report, state, error = self._report, document["state"], document["error"] or {}
        if job.fate is Fate.ANY:
            self.hostile(f"job {error.get('code', state)}")
        elif state == "succeeded":
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
            report.wrong.add(f"wrong: {job.id} should have {job.fate}, but {state}: {error}")
        elif state == "succeeded" and job.items and not reference.equals(job.items, document["result"]["embeddings"]):
            report.wrong.add(f"wrong vectors: {job.id}")


class Reference:
    """The right vectors, computed in this process."""

    def __init__(self) -> None:
        torch.set_num_threads(1)  # the cores are the service's
        self._clip = ClipModel(CATALOGUE["emoji-mini"], Settings(device="cpu", precision="fp32"))
        pixels = [decode(p, self._clip.preprocess, max_bytes=2**24, max_pixels=2**24) for p in IMAGES]
        self._images = self._clip.embed_images(pixels).result()

    def equals(self, items: list[str | int], vectors: Any) -> bool:
        got = np.array(vectors, dtype=np.float32)
        expected = self._of(items)
        if got.shape != expected.shape:
            return False
        off = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
        return bool(off.max() <= EXACT)

    def _of(self, items: list[str | int]) -> NDArray[np.float32]:
        if isinstance(items[0], str):
            rows: NDArray[np.float32] = self._clip.embed_texts([self._clip.tokenizer(str(t)) for t in items]).result()
            return rows
        return np.stack([self._images[int(i)] for i in items])
