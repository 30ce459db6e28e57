"""The life of a job as a state machine: a model says what every operation of the store must do, in any order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, invariant, multiple, precondition, rule

from clip_queue.shared import ops
from clip_queue.shared.errors import KeyReused, QueueFull, UnknownJob
from clip_queue.shared.job import FINAL, TRANSITIONS, Answer, Inputs, Job, Kind, Lane, State
from clip_queue.shared.store import Store
from clip_queue.shared.wire import pack_answer, unpack_note

MODEL = "m"
WORKERS = ("a", "b")
JOBS = 5  # few, so that much happens to each
LIMIT = 12  # unfinished items in a lane
ATTEMPTS = 2
TTL = 600_000  # ms: nothing expires during a run
HOUR = 3600.0
REPLY, WATCHER = "cq:reply:caller", "cq:reply:watcher"

DONE = Answer("fingerprint", b"\0\0\x80\x3f", 1)
BAD = Answer(error={"code": "bad_image", "message": "no picture", "index": 0})
workers = st.sampled_from(WORKERS)


@dataclass
class Known:
    """What the model knows of a job."""

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
    unsent: bool = False  # put back in line since it was last sent
    promised: bool = False
    watched: bool = False
    answer: bytes = b""
    path: list[State] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.state in FINAL


class StoreMachine(RuleBasedStateMachine):
    """Subclasses say which server it runs on."""

    jobs: Bundle[str] = Bundle("jobs")

    def connect(self) -> Store:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.store = self.connect()
        self.store.client.flushall()
        self.known: dict[str, Known] = {}
        self.forgotten: set[str] = set()
        self.alive: set[str] = set()
        self.told: Counter[str] = Counter()  # what the watcher must have heard, by job
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

    def standing_for(self, key: str) -> Known | None:
        return next((job for job in self.known.values() if key and job.key == key), None)

    # What can happen

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
        submission = ops.Submission(job, Inputs(["x"] * total), LIMIT, HOUR, True, key, digest)
        result = self.store.run(ops.accept([submission]))[0]
        if first := self.standing_for(key):
            if first.digest != digest:
                assert isinstance(result, KeyReused)
            else:
                assert isinstance(result, ops.Accepted)
                assert (result.again, result.job_id) == (True, first.id)
                first.promised = first.promised or first.state is State.QUEUED
            return multiple()
        load = self.load(lane)
        if load and load + total > LIMIT:
            assert isinstance(result, QueueFull)
            return multiple()
        assert isinstance(result, ops.Accepted), result
        assert not result.again
        self.known[job.id] = Known(job.id, lane, total, key, digest)
        return job.id

    @rule(key=st.sampled_from(["k1", "k2"]), digest=st.sampled_from(["body-1", "body-2"]))
    def ask_for_key(self, key: str, digest: str) -> None:
        first = self.standing_for(key)
        try:
            assert self.store.run(ops.seen("me", key, digest)) == (first.id if first else None)
        except KeyReused:
            assert first is not None
            assert first.digest != digest
            return
        if first:
            first.promised = first.promised or first.state is State.QUEUED

    @rule(ids=st.lists(jobs, min_size=1, max_size=4), worker=workers, alone=st.booleans())
    def deliver(self, ids: list[str], worker: str, alone: bool) -> None:
        """A message, of any age and for the how-manieth time."""
        claims = self.store.run(ops.claim(ids, worker, ATTEMPTS, alone=alone))
        for job_id, claim in zip(ids, claims, strict=True):
            assert claim.reason == self.claimed(job_id, worker, alone)
            assert (claim.job is not None) == (claim.inputs is not None) == (claim.reason == "yours")

    def claimed(self, job_id: str, worker: str, alone: bool) -> str:
        job = self.known.get(job_id)
        if job is None:
            return "gone"
        if job.state is not State.QUEUED:
            return str(job.state)
        if job.late:
            self.move(job, State.EXPIRED)
            return "expired"
        if job.attempts == ATTEMPTS - 1 and not alone:
            return "alone"
        self.move(job, State.RUNNING)
        job.worker = worker
        job.attempts += 1
        return "yours"

    @rule(worker=workers, ids=st.lists(jobs, max_size=4, unique=True), done=st.integers(0, 3))
    def beat(self, worker: str, ids: list[str], done: int) -> None:
        lost = self.store.run(ops.beat(worker, b"info", HOUR, [(i, done, 0) for i in ids]))
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
        """By whoever thinks that it holds the job, as often as it likes."""
        answer = DONE if state is State.SUCCEEDED else BAD
        ours = self.store.run(ops.finish([ops.Ending(job_id, state, answer, 1, 0)], worker))[0]
        assert ours == self.holds(worker, job_id)
        if ours:
            self.move(self.known[job_id], state)
            self.known[job_id].answer = pack_answer(answer)

    @rule(worker=workers, ids=st.lists(jobs, min_size=1, max_size=3, unique=True))
    def release(self, worker: str, ids: list[str]) -> None:
        self.store.run(ops.release(ids, worker))
        for job in (self.known[i] for i in ids if self.holds(worker, i)):
            self.requeue(job)
            job.attempts -= 1

    @rule(job_id=jobs, owner=st.sampled_from(["me", "me", "another"]))
    def cancel(self, job_id: str, owner: str) -> None:
        job = self.known.get(job_id)
        try:
            state, ours = self.store.run(ops.cancel(job_id, owner))
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
    def forget(self, job_id: str) -> None:
        self.store.run(ops.forget([job_id]))
        job = self.known.get(job_id)
        if job and job.state is State.QUEUED and not job.promised:
            del self.known[job_id]
            self.forgotten.add(job_id)

    @rule(job_id=jobs)
    def deadline_passes(self, job_id: str) -> None:
        job = self.known.get(job_id)
        if job and not job.ended:
            self.store.client.hset(f"cq:job:{job_id}", "deadline", 1)
            job.late = True

    @rule(job_id=jobs)
    def watch(self, job_id: str) -> None:
        job = self.known.get(job_id)
        assert self.store.run(ops.watch(job_id, WATCHER)) == (job is not None)
        if job:
            job.watched = job.watched or not job.ended

    @rule(lane=st.sampled_from(Lane), there=st.booleans())
    def messages_wait(self, lane: Lane, there: bool) -> None:
        queue = f"clip.{MODEL}.{lane}"
        self.store.client.delete(queue)
        if there:
            self.store.client.rpush(queue, b"a message")

    @rule(resend_after=st.sampled_from([0.0, HOUR]), neglected=st.sampled_from([HOUR, HOUR, -1]))
    def reconcile(self, resend_after: float, neglected: float) -> None:
        """``neglected`` below 0: it is so long ago that any worker has said what it holds."""
        page = self.store.run(ops.reconcile(MODEL, 0, ATTEMPTS, resend_after, neglected))
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

    # What holds all the time

    @invariant()
    def every_record_is_as_the_model_has_it(self) -> None:
        for job in self.known.values():
            view = self.store.run(ops.view(job.id))
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
    def lines_and_load_mirror_the_unfinished_jobs(self) -> None:
        client = self.store.client
        unfinished = [job for job in self.known.values() if not job.ended]
        assert _members(client.zrange(f"cq:open:{MODEL}", 0, -1)) == {job.id for job in unfinished}
        for lane in Lane:
            line = {job.id for job in unfinished if job.lane is lane and job.state is State.QUEUED}
            assert _members(client.zrange(f"cq:queued:{MODEL}:{lane}", 0, -1)) == line
            assert int(client.hget("cq:load", f"{MODEL}:{lane}") or 0) == self.load(lane)

    @invariant()
    def an_end_is_told_exactly_once(self) -> None:
        notes = [unpack_note(data) for data in self.store.client.lrange(REPLY, 0, -1)]
        assert sorted(notes) == sorted((job.id, job.answer) for job in self.known.values() if job.ended)
        heard = Counter(unpack_note(data)[0] for data in self.store.client.lrange(WATCHER, 0, -1))
        assert heard == +self.told

    @invariant()
    def every_key_lives_as_long_as_its_job(self) -> None:
        client = self.store.client
        for job in self.known.values():
            record, inputs, answer = f"cq:job:{job.id}", f"cq:in:{job.id}", f"cq:out:{job.id}"
            of_key = [f"cq:idem:me:{job.key}"] if job.key else []
            if job.ended:
                assert client.exists(inputs) == 0
                assert all(0 < client.pttl(key) <= TTL for key in [record, *of_key])
                assert (0 < client.pttl(answer) <= TTL) if job.answer else not client.exists(answer)
                assert client.pttl(f"cq:watch:{job.id}") != -1
            else:
                assert all(client.pttl(key) == -1 for key in [record, inputs, *of_key])
        for job_id in self.forgotten:
            assert client.keys(f"*{job_id}*") == []


def _members(raw: list[bytes]) -> set[str]:
    return {value.decode() for value in raw}
