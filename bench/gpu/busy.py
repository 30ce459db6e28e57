"""How busy a card is, by its own counters (NVML), over a stretch of time."""

from __future__ import annotations

import threading
from types import TracebackType

import torch

from clip_queue.worker.inference.gpu import Gpu

INTERVAL = 0.2  # seconds between two looks


class Busy:
    """A context manager. :attr:`share` is the mean share in which the card was busy; nan if it does not tell."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = Gpu(device)
        self._seen: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="busy", daemon=True)

    @property
    def share(self) -> float:
        return sum(self._seen) / len(self._seen) if self._seen else float("nan")

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(INTERVAL):
            if usage := self._gpu.usage():
                self._seen.append(usage["busy"])
