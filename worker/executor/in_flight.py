"""What this worker holds: jobs that it claimed, in work or about to be, and those that it will give back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from clip_queue.worker.executor.execution import Run
from clip_queue.worker.executor.handlers import Work


class Held:
    """For many threads. What is in here is renewed by every heartbeat; a job that a record says this worker holds and
    that is not in here would be nobody's, until the reconciler finds that it is neglected."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, Run | Work] = {}
        self._claimed: set[str] = set()
        self._orphans: list[str] = []

    def claimed(self, job_ids: Iterable[str]) -> None:
        """These are ours; their work is not begun yet."""
        with self._lock:
            self._claimed.update(job_ids)

    def began(self, run: Run | Work) -> None:
        with self._lock:
            self._claimed.discard(run.job.id)
            self._runs[run.job.id] = run

    def never_begun(self, job_id: str) -> None:
        """It has ended all the same."""
        with self._lock:
            self._claimed.discard(job_id)

    def ended(self, runs: Sequence[Run | Work]) -> None:
        with self._lock:
            self._let_go(runs)

    def give_back(self, runs: Sequence[Run | Work], others: Iterable[str] = ()) -> None:
        """Leave runs, and ``others`` that no run was begun for, to the heartbeat, which tells the store."""
        others = list(others)
        with self._lock:
            self._let_go(runs)
            self._claimed.difference_update(others)
            self._orphans += [run.job.id for run in runs]
            self._orphans += [job_id for job_id in others if job_id not in self._runs]

    def runs(self) -> list[Run | Work]:
        with self._lock:
            return list(self._runs.values())

    def progress(self) -> list[tuple[str, int, int]]:
        """(id, items done, items failed) of all that is held."""
        with self._lock:
            begun = [(run.job.id, run.done, run.failed) for run in self._runs.values()]
            return begun + [(job_id, 0, 0) for job_id in self._claimed]

    def orphans(self) -> list[str]:
        """Jobs to give back to the store; the caller :meth:`adopt`\\ s them once that is done."""
        with self._lock:
            return list(self._orphans)

    def adopt(self, job_ids: list[str]) -> None:
        with self._lock:
            self._orphans = [i for i in self._orphans if i not in set(job_ids)]

    def lose(self, job_ids: list[str]) -> None:
        """Spend nothing more on jobs that were cancelled, or are another's by now."""
        with self._lock:
            runs = [self._runs[i] for i in job_ids if i in self._runs]
        for run in runs:
            run.abandon()

    def abandon(self) -> None:
        """Give back everything."""
        runs = self.runs()
        for run in runs:
            run.abandon()
        self.give_back(runs)

    def _let_go(self, runs: Sequence[Run | Work]) -> None:
        for run in runs:
            if self._runs.get(run.job.id) is run:  # the job may have come back to this worker, as another run
                del self._runs[run.job.id]
