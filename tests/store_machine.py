"""The states of a job as a state machine: every operation of the store, in any order, with its effect on the model."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, multiple, precondition, rule

from clip_queue.shared import ops, submissions
from clip_queue.shared.errors import KeyReused, QueueFull, UnknownJob
from clip_queue.shared.job import Inputs, Job, JobResult, Kind, State
from clip_queue.shared.lane import Lane
from clip_queue.shared.wire import pack_result
from tests.store_model import MODEL, REPLY, TTL, WATCHER, Known, StoreModel

WORKERS = ("a", "b")
JOBS = 5  # few, so that much happens to each
LIMIT = 12  # unfinished items in a lane
ATTEMPTS = 2
HOUR = 3600.0

DONE = JobResult("fingerprint", b"\0\0\x80\x3f", 1)
BAD = JobResult(error={"code": "bad_image", "message": "no image", "index": 0})
workers = st.sampled_from(WORKERS)


class StoreMachine(StoreModel):
    """A subclass chooses the server."""

    jobs: Bundle[str] = Bundle("jobs")

    @precondition(lambda self: len(self.known) < JOBS)
    @rule(
        target=jobs,
        lane=st.sampled_from(Lane),
        total=st.integers(1, 5),
        key=st.sampled_from(["", "k1", "k2"]),
        digest=st.sampled_from(["body-1", "body-2"]),
    )
    def accept(self, lane: Lane, total: int, key: str, digest: str) -> str | MultipleResults[str]:
        job = Job(Kind.EMBED_TEXT, MODEL, total, lane, owner="me", reply=REPLY, ttl=TTL)
        submission = submissions.Submission(job, Inputs(["x"] * total), LIMIT, HOUR, True, key, digest)
        result = self.store.execute(submissions.accept([submission]))[0]
        if first := self.first_with(key):
            if first.digest != digest:
                assert isinstance(result, KeyReused)
            else:
                assert isinstance(result, submissions.Accepted)
                assert (result.duplicate, result.job_id) == (True, first.id)
                first.promised = first.promised or first.state is State.QUEUED
            return multiple()
        load = self.load(lane)
        if load and load + total > LIMIT:
            assert isinstance(result, QueueFull)
            return multiple()
        assert isinstance(result, submissions.Accepted), result
        assert not result.duplicate
        self.known[job.id] = Known(job.id, lane, total, key, digest)
        return job.id

    @rule(key=st.sampled_from(["k1", "k2"]), digest=st.sampled_from(["body-1", "body-2"]))
    def ask_for_key(self, key: str, digest: str) -> None:
        first = self.first_with(key)
        try:
            assert self.store.execute(submissions.find_idempotent("me", key, digest)) == (first.id if first else None)
        except KeyReused:
            assert first is not None
            assert first.digest != digest
            return
        if first:
            first.promised = first.promised or first.state is State.QUEUED

    @rule(ids=st.lists(jobs, min_size=1, max_size=4), worker=workers, suspicion=st.sampled_from(ops.Suspicion))
    def deliver(self, ids: list[str], worker: str, suspicion: ops.Suspicion) -> None:
        """A message of any age, delivered once or more often."""
        claims = self.store.execute(ops.claim(ids, worker, ATTEMPTS, suspicion))
        for job_id, claim in zip(ids, claims, strict=True):
            assert claim.reason == self.claimed(job_id, worker, suspicion)
            assert (claim.job is not None) == (claim.inputs is not None) == (claim.reason == "yours")

    def claimed(self, job_id: str, worker: str, suspicion: ops.Suspicion) -> str:
        job = self.known.get(job_id)
        if job is None:
            return "gone"
        if job.state is not State.QUEUED:
            return str(job.state)
        if job.late:
            self.move(job, State.EXPIRED)
            return "expired"
        needed = ops.Suspicion.NONE
        if job.attempts:
            needed = ops.Suspicion.ALL if job.attempts == ATTEMPTS - 1 else ops.Suspicion.SOME
        if needed > suspicion:
            return "suspect"
        self.move(job, State.RUNNING)
        job.worker = worker
        job.attempts += 1
        return "yours"

    @rule(worker=workers, ids=st.lists(jobs, max_size=4, unique=True), done=st.integers(0, 3))
    def beat(self, worker: str, ids: list[str], done: int) -> None:
        lost = self.store.execute(ops.beat(worker, b"info", HOUR, [(i, done, 0) for i in ids]))
        self.alive.add(worker)
        assert lost == [i for i in ids if not self.holds(worker, i)]
        for job in (self.known[i] for i in ids if i not in lost):
            if job.done != done:
                job.done = done
                self.tell(job)

    @rule(worker=workers)
    def lease_runs_out(self, worker: str) -> None:
        self.store.client.delete(f"cq:worker:{worker}")
        self.alive.discard(worker)

    @rule(worker=workers, job_id=jobs, state=st.sampled_from([State.SUCCEEDED, State.FAILED, State.EXPIRED]))
    def finish(self, worker: str, job_id: str, state: State) -> None:
        """By a worker that may not hold the job, once or more often."""
        result = DONE if state is State.SUCCEEDED else BAD
        ours = self.store.execute(ops.finish([ops.Completion(job_id, state, result, 1, 0)], worker))[0]
        assert ours == self.holds(worker, job_id)
        if ours:
            self.move(self.known[job_id], state)
            self.known[job_id].result = pack_result(result)

    @rule(worker=workers, ids=st.lists(jobs, min_size=1, max_size=3, unique=True))
    def release(self, worker: str, ids: list[str]) -> None:
        self.store.execute(ops.release(ids, worker))
        for job in (self.known[i] for i in ids if self.holds(worker, i)):
            self.requeue(job)
            job.attempts -= 1

    @rule(job_id=jobs, owner=st.sampled_from(["me", "me", "another"]))
    def cancel(self, job_id: str, owner: str) -> None:
        job = self.known.get(job_id)
        try:
            state, ours = self.store.execute(ops.cancel(job_id, owner))
        except UnknownJob:
            assert job is None or owner != "me"
            return
        assert job is not None
        assert owner == "me"
        assert ours == (not job.ended)
        if ours:
            self.move(job, State.CANCELLED)
        assert state == job.state

    @rule(job_id=jobs)
    def discard(self, job_id: str) -> None:
        self.store.execute(submissions.discard([job_id]))
        job = self.known.get(job_id)
        if job and job.state is State.QUEUED and not job.promised:
            del self.known[job_id]
            self.discarded.add(job_id)

    @rule(ids=st.lists(jobs, min_size=1, max_size=3, unique=True))
    def forget(self, ids: list[str]) -> None:
        self.store.execute(submissions.forget(ids))
        for job_id in ids:
            job = self.known.get(job_id)
            if job and job.state is State.SUCCEEDED and not job.key:
                self.forgotten[job_id] = self.known.pop(job_id).result
                self.discarded.add(job_id)

    @rule(job_id=jobs)
    def deadline_passes(self, job_id: str) -> None:
        job = self.known.get(job_id)
        if job and not job.ended:
            self.store.client.hset(f"cq:job:{job_id}", "deadline", 1)
            if job.state is State.QUEUED and not job.unsent:
                self.store.client.zadd(f"cq:open:{MODEL}", {job_id: 1})
            job.late = True

    @rule(job_id=jobs)
    def watch(self, job_id: str) -> None:
        job = self.known.get(job_id)
        assert self.store.execute(ops.watch(job_id, WATCHER)) == (job is not None)
        if job:
            job.watched = job.watched or not job.ended

    @rule(lane=st.sampled_from(Lane), there=st.booleans())
    def messages_wait(self, lane: Lane, there: bool) -> None:
        queue = f"clip.{MODEL}.{lane}"
        self.store.client.delete(queue)
        if there:
            self.store.client.rpush(queue, b"a message")

    @rule(
        resend_after=st.sampled_from([0.0, HOUR]),
        neglected=st.sampled_from([HOUR, HOUR, -1]),
        sums=st.sampled_from(["right", "wrong", "lost"]),
    )
    def reconcile(self, resend_after: float, neglected: float, sums: str) -> None:
        """``neglected`` below 0: no heartbeat has named any job for long enough."""
        if sums != "right":
            self.store.client.delete("cq:held", "cq:recount")
        if sums == "wrong":
            self.store.client.hset("cq:held", mapping={"me": 99, "*": -5, "a stranger": 7})
        page = self.store.execute(ops.reconcile(MODEL, 0, ATTEMPTS, resend_after, neglected))
        expected: set[tuple[Lane, str]] = set()
        for job in [job for job in self.known.values() if not job.ended]:
            if job.state is State.RUNNING and (job.worker not in self.alive or neglected < 0):
                if job.attempts >= ATTEMPTS:
                    self.move(job, State.FAILED)
                else:
                    self.requeue(job)
            if job.state is State.QUEUED and job.late:
                self.move(job, State.EXPIRED)
            if job.state is State.QUEUED and (job.unsent or not resend_after):
                job.unsent = False
                expected.add((job.lane, job.id))
        assert page.offset == -1
        assert {(lane, i) for lane, ids in page.resend.items() for i in ids} == expected
