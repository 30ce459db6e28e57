"""The states of a job as a model: what the store must have after any operations (:mod:`tests.store_machine`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis.stateful import RuleBasedStateMachine, invariant

from clip_queue.shared import ops
from clip_queue.shared.held import RECORD
from clip_queue.shared.job import FINAL, TRANSITIONS, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.store import Store
from clip_queue.shared.wire import unpack_reply

MODEL = "m"
TTL = 600_000  # ms: nothing expires during a run
REPLY, WATCHER = "cq:reply:caller", "cq:reply:watcher"


@dataclass
class Known:
    """A job in the model."""

    id: str
    lane: Lane
    total: int
    key: str
    digest: str
    state: State = State.QUEUED
    worker: str = ""
    attempts: int = 0
    done: int = 0
    late: bool = False  # its deadline has passed
    unsent: bool = False  # put back in the queue since it was last sent
    promised: bool = False
    watched: bool = False
    result: bytes = b""
    path: list[State] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.state in FINAL


class StoreModel(RuleBasedStateMachine):
    """The model, and the invariants that compare the store with it. A subclass chooses the server."""

    def connect(self) -> Store:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.store = self.connect()
        self.store.client.flushall()
        self.known: dict[str, Known] = {}
        self.discarded: set[str] = set()  # and those that are forgotten
        self.forgotten: dict[str, bytes] = {}  # their results
        self.alive: set[str] = set()
        self.told: Counter[str] = Counter()  # how many messages the watcher must have, by job
        self.frozen: dict[str, dict[bytes, bytes]] = {}  # records of ended jobs as first seen

    # The model

    def move(self, job: Known, state: State) -> None:
        assert state in TRANSITIONS[job.state]
        job.state = state
        job.path.append(state)
        self.tell(job)

    def tell(self, job: Known) -> None:
        if job.watched:
            self.told[job.id] += 1

    def requeue(self, job: Known) -> None:
        self.move(job, State.QUEUED)
        job.worker, job.done, job.unsent = "", 0, True

    def holds(self, worker: str, job_id: str) -> bool:
        job = self.known.get(job_id)
        return job is not None and job.state is State.RUNNING and job.worker == worker

    def load(self, lane: Lane) -> int:
        return sum(job.total for job in self.known.values() if job.lane is lane and not job.ended)

    def first_with(self, key: str) -> Known | None:
        return next((job for job in self.known.values() if key and job.key == key), None)

    # What is true at all times

    @invariant()
    def every_record_is_as_the_model_has_it(self) -> None:
        for job in self.known.values():
            view = self.store.execute(ops.view(job.id))
            seen = view.job
            assert (seen.state, seen.attempts) == (job.state, job.attempts)
            if not job.ended:
                assert (seen.worker, seen.done) == (job.worker, job.done)
            assert bool(seen.finished) == bool(seen.expires) == job.ended
            assert (view.position is not None) == (job.state is State.QUEUED)

    @invariant()
    def a_finished_job_never_changes(self) -> None:
        for job in self.known.values():
            if job.ended:
                record = self.store.client.hgetall(f"cq:job:{job.id}")
                record.pop(b"watched", None)
                assert self.frozen.setdefault(job.id, record) == record

    @invariant()
    def queues_and_load_mirror_the_unfinished_jobs(self) -> None:
        client = self.store.client
        unfinished = [job for job in self.known.values() if not job.ended]
        looks = dict(client.zrange(f"cq:open:{MODEL}", 0, -1, withscores=True))
        assert _members(looks) == {job.id for job in unfinished}
        for job in unfinished:  # nothing that needs a look is forgotten
            at = looks[job.id.encode()]
            deadline = float(client.hget(f"cq:job:{job.id}", "deadline") or "inf")
            assert at == 0 if job.state is State.RUNNING or job.unsent else at in (0, deadline)
        for lane in Lane:
            queued = {job.id for job in unfinished if job.lane is lane and job.state is State.QUEUED}
            assert _members(client.zrange(f"cq:queued:{MODEL}:{lane}", 0, -1)) == queued
            assert int(client.hget("cq:load", f"{MODEL}:{lane}") or 0) == self.load(lane)

    @invariant()
    def an_end_is_told_exactly_once(self) -> None:
        replies = [unpack_reply(data) for data in self.store.client.lrange(REPLY, 0, -1)]
        ends = [(job.id, job.result) for job in self.known.values() if job.ended]
        assert sorted(replies) == sorted([*ends, *self.forgotten.items()])
        received = Counter(unpack_reply(data)[0] for data in self.store.client.lrange(WATCHER, 0, -1))
        assert received == +self.told

    @invariant()
    def the_bytes_held_are_those_of_its_jobs(self) -> None:
        expected = 0
        for job in self.known.values():
            record = self.store.client.hgetall(f"cq:job:{job.id}")
            kept = RECORD + len(record.get(b"error", b"")) + len(job.result)
            expected += kept if job.ended else int(record[b"bytes"])
        held = [int(self.store.client.hget("cq:held", owner) or 0) for owner in ("me", "*")]
        assert held == [expected, expected]

    @invariant()
    def every_key_lives_as_long_as_its_job(self) -> None:
        client = self.store.client
        for job in self.known.values():
            record, inputs, result = f"cq:job:{job.id}", f"cq:in:{job.id}", f"cq:out:{job.id}"
            of_key = [f"cq:idem:me:{job.key}"] if job.key else []
            if job.ended:
                assert client.exists(inputs) == 0
                assert all(0 < client.pttl(key) <= TTL for key in [record, *of_key])
                assert (0 < client.pttl(result) <= TTL) if job.result else not client.exists(result)
                assert client.pttl(f"cq:watch:{job.id}") != -1
            else:
                assert all(client.pttl(key) == -1 for key in [record, inputs, *of_key])
        for job_id in self.discarded:
            assert client.keys(f"*{job_id}*") == []


def _members(raw: list[bytes]) -> set[str]:
    return {value.decode() for value in raw}
